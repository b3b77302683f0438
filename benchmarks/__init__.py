"""What is measured: suites (YAML) and the project's own performance benchmarks."""
