"""The reports of a run folder: complete, self-contained, safe with hostile text, honest about what is missing."""

import base64
import io
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness.audit import COLUMNS, GENERATION
from harness.errors import StoreError
from reports import markdown
from reports.build import build
from reports.findings import findings
from reports.html import page
from reports.load import load
from reports.pictures import Album

Build = Callable[..., Path]
VOID = {"meta", "img", "br", "link", "input"}


class Outline(HTMLParser):
    """Every start tag with its attributes, and whether each element is closed by its own end tag."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes the tag; self-closed SVG elements come here as well."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes an element without content."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Fails on elements that are closed out of order."""
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collects the visible text."""
        self.text.append(data)


def outline(text: str) -> Outline:
    """The page, parsed."""
    parser = Outline()
    parser.feed(text)
    parser.close()
    assert parser.stack == []
    return parser


def written(folder: Path, name: str = "report.html") -> str:
    """Builds the reports and returns one of them."""
    build(folder)
    return (folder / name).read_text(encoding="utf-8")


def test_every_report_is_written(make_run: Build) -> None:
    """The page, the Markdown, the JSON and one CSV per table are written, and their paths returned."""
    folder = make_run()
    expected = {"report.html", "report.md", "report.json", *(f"tables/{name}.csv" for name in COLUMNS)}
    assert {str(path.relative_to(folder)) for path in build(folder)} == expected
    assert not list(folder.rglob("*.part"))


def test_page_is_small_and_asks_for_nothing(make_run: Build) -> None:
    """The page is under 5 MB, has no script, and loads nothing from anywhere."""
    text = written(make_run())
    assert len(text.encode()) < 5_000_000
    assert "<script" not in text.lower()
    for _, attributes in outline(text).tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/webp;base64,"))
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"@import|url\((?!#)", text)


def test_demonstration_box_opens_the_page(make_run: Build) -> None:
    """Demonstration data are called no evidence before the title, in both documents."""
    folder = make_run()
    text = written(folder)
    assert text.index("Demonstration data: not evidence") < text.index("<h1")
    assert (folder / "report.md").read_text(encoding="utf-8").startswith("> **Demonstration data: not evidence")


def test_real_data_have_no_demonstration_box(make_run: Build) -> None:
    """The box is missing where the dataset is evidence."""
    text = written(make_run(edit=lambda about: about["dataset"].update(demonstration=False)))
    assert "not evidence" not in text


def test_in_short_says_how_outputs_behave(make_run: Build) -> None:
    """mCE, attacks, invented detail and maps have a sentence each, unfaithful maps a warning; noise needs none then."""
    empty = {"noise": pd.DataFrame(columns=COLUMNS["noise"].split())}
    told = {(f.topic, f.warning): f.text for f in findings(load(make_run(changed=empty)))}
    assert "sr3 0.970 [0.900, 1.10]" in told["Corrupted inputs", False]
    assert "as far as bicubic's" in told["Adversarial inputs", False]
    assert "realesrgan 0.250 [0.150, 0.350]" in told["Invented detail", False]
    assert "Maps of bicubic (lam)" in told["Explanations", True]
    assert not [topic for topic, _ in told if topic.startswith("Noise")]


def test_page_says_the_figures_with_their_intervals(make_run: Build) -> None:
    """Means stand with their intervals, infinite PSNR says "identical", and the leader is named with its lead."""
    text = written(make_run())
    assert '0.048 <span class="interval">[0.047, 0.049]</span>' in text
    assert re.search(r"identical<small>557 of 557", text)
    assert "Separated from realesrgan (0.062 [0.061, 0.064]) by a paired difference of −0.014 [−0.015, −0.013]." in text
    assert "realesrgan 28.4 [28.2, 28.6] &gt; sr3 26.1 [25.9, 26.3] &gt; bicubic 25.0 [24.8, 25.2]" in text


def test_ties_are_shown_as_ties(make_run: Build) -> None:
    """Two backends that no paired interval separates share their rank and are called a tie."""
    folder = make_run()
    pairs = pd.read_parquet(folder / "tables/pairs.parquet")
    pairs["verdict"] = "tie"
    pairs.to_parquet(folder / "tables/pairs.parquet")
    text = written(folder)
    assert "a tie between sr3 0.048 [0.047, 0.049] on 555 of 557 images and realesrgan 0.062 [0.061, 0.064]" in text
    assert text.count("rank 1=") == 6


def test_small_groups_are_insufficient(make_run: Build) -> None:
    """A group too small to judge has a grey cell with its n, and no figure."""
    text = written(make_run())
    assert re.search(r'class="number muted">insufficient<small>n = 12<', text)


def test_few_requests_have_no_percentile(make_run: Build) -> None:
    """A percentile without enough requests says so, and an invalid timing says why."""
    text = written(make_run())
    assert "n too small" in text
    assert "p95 (needs 130) and p99 (needs 662)" in text
    assert "load 1.7 of 2 cores before the pass" in text


def test_costs_at_each_size_are_told(make_run: Build) -> None:
    """Each backend has a row a size: few requests give a mean, a size not taken its reason; the ratio is a sentence."""
    document = markdown.text(load(make_run()))
    rows = [line.split(" | ") for line in document.splitlines() if line.startswith("| sr3 | ")]
    alone = next(row for row in rows if row[1:3] == ["64", "1"])
    assert "3.42 [3.35, 3.49]" in alone
    assert "612 (device 1 234)" in [cell.replace("\u202f", " ").replace("\u00a0", " ") for cell in alone]
    assert any(row[1:3] == ["256", "not supported"] and "inputs of 16 to 48 pixels" in row[-1] for row in rows)
    assert any(
        "mean 226 ms (no percentile: n too small)" in line
        for line in document.splitlines()
        if line.startswith("| realesrgan")
    )
    assert "At 64 px sr3 with 8 steps takes 3.42 [3.35, 3.49] times the compute time of realesrgan" in document
    assert "256 px: not supported; it takes inputs of 16 to 48 pixels" in document
    assert "Energy, estimate: processor seconds x 5 W a core (assumed)." in document
    assert "(a request would take about 48 s" not in document  # a table of its own lists what was not tried
    assert "| a request would take about 48 s; a pass has 60 s |" in document


def test_scenarios_have_their_largest_rate(make_run: Build) -> None:
    """The server column holds the largest rate within the bound, or says why there is none."""
    document = written(make_run(), "report.md")
    row = next(
        line for line in document.splitlines() if line.startswith("| sr3 | 64 | n too small") or "40.7/s" in line
    )
    assert "Server (most random arrivals with a p90 within 2 s)" in document
    assert "40.7/s (p90 400 ms, n = 64) | " in row


def test_limits_of_the_run_are_named(make_run: Build) -> None:
    """Failures, domains, invalid timings and uncommitted code are warned of before the first section."""
    text = written(make_run())
    limits = text[text.index("Limits of this run") : text.index('<section id="comparison"')]
    for part in ("realesrgan was made for", "sr3 2:", "1 of 8 timings", "uncommitted changes", "local file"):
        assert part in limits


def test_diversity_has_no_winner(make_run: Build) -> None:
    """A stochastic backend's diversity stands with its interval, deterministic ones have one output and no figure."""
    text = written(make_run())
    assert "sr3 0.031 [0.028, 0.034] between 4 outputs. bicubic and realesrgan: one output for an input." in text
    table = text[text.index("<caption>Diversity") :]
    assert table[: table.index("</table>")].count("deterministic: one output") == 2
    assert "more is not better" in table[: table.index("<tbody>")]


def without_truth(about: dict[str, Any]) -> None:
    """The record of photos as they are: no control arm, other metrics, inputs of several sizes."""
    about["suite"]["content"] = {"photos": {"scale": 4, "max_pixels": 90000}}
    about["inputs"] = {"sizes": 9, "smallest": "30 x 20", "largest": "200 x 300", "timed": "90 x 60"}
    about["backends"] = [b for b in about["backends"] if b["label"] != "passthrough"]
    about["backends"][1] |= {"inputs_below_domain": 17}
    about["metrics"] = {
        "lr_psnr": about["metrics"]["psnr"] | {"title": "Consistency"},
        "sharpness": {"title": "Sharpness", "unit": "", "higher_is_better": None, "recipe": "Laplacian"},
    }


def test_a_run_without_ground_truth_says_so_first(make_run: Build) -> None:
    """What needs the truth is named as absent, consistency leads, and sharpness has gains but no ranks or winners."""
    renamed = {"psnr": "lr_psnr", "lpips_alex": "sharpness", "better": "higher", "worse": "lower"}
    folder = make_run(edit=without_truth, changed={"sets": None})
    for path in (folder / "tables").glob("*.parquet"):
        frame = pd.read_parquet(path)
        if "metric" in frame:
            frame = frame[frame["metric"].isin(["psnr", "lpips_alex"])].replace(renamed)
        frame = frame[frame["backend"] != "passthrough"] if "backend" in frame else frame
        frame.assign(**{"target": ""} if "target" in frame else {}).to_parquet(path)
    text = written(folder)
    outline(text)
    opening = text[text.index('<section id="short"') : text.index("Limits of this run")]
    assert opening.index("No ground truth") < opening.index("Best Consistency")
    assert "SSIM (Y), LPIPS (AlexNet), LPIPS (VGG16), KID, FID and the passthrough control need a ground" in opening
    assert "Paired gain over bicubic on the same photos" in opening
    assert "More is not better." in opening
    assert "KID and FID compare with the ground truth, which this run does not have. Not measured is not" in text
    assert "(17 of 557 inputs are smaller)" in text
    assert "30 x 20 to 200 x 300 pixels, 9 sizes" in text
    assert "Target" not in text
    assert "perception-distortion" not in text
    assert "<td>neither</td>" in text.replace("\n", "")
    assert "Highest group" in text


def test_the_note_of_a_suite_limits_the_run(make_run: Build) -> None:
    """What a suite says of its own limits stands among the limits, before the first section."""
    folder = make_run(edit=lambda about: about["suite"]["content"].update(note="Out of distribution on purpose."))
    text = written(folder)
    assert text.index("Limits of this run") < text.index("on purpose") < text.index('<section id="comparison"')


def test_large_pictures_show_their_centre_in_full(make_run: Build) -> None:
    """Where outputs are larger than a thumbnail, input and output show the same central part, unreduced."""
    folder = make_run()
    quarters = np.zeros((400, 400, 3), np.uint8)
    quarters[136:264, 136:264] = 200
    for name, image in (("out", quarters), ("in", quarters[::4, ::4])):
        Image.fromarray(image).save(folder / "pictures" / f"{name}.png")
    small, large = Album(folder, 10**6).uris("pictures/in.png", "pictures/out.png") or []
    for uri, side in ((small, 32), (large, 128)):
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
            assert picture.size == (side, side)
            assert abs(np.asarray(picture).astype(int) - 200).max() < 10


@pytest.mark.parametrize("name", [name for name in COLUMNS if name not in GENERATION])
def test_missing_table_is_named(make_run: Build, name: str) -> None:
    """Each table of upscalers can be missing: the reports are still written and name it as not measured."""
    folder = make_run(changed={name: None})
    text = written(folder)
    outline(text)
    assert f"tables/{name}.parquet is missing" in text
    assert "Not measured is not passed." in (folder / "report.md").read_text(encoding="utf-8")
    assert name in json.loads((folder / "report.json").read_text(encoding="utf-8"))["not_measured"]


def test_empty_tables_are_named(make_run: Build) -> None:
    """Tables without rows are not measured; an empty table of failures means that nothing failed."""
    empty = {name: pd.DataFrame(columns=columns.split()) for name, columns in COLUMNS.items()}
    text = written(make_run(changed=dict(empty)))
    outline(text)
    assert "No case failed." in text
    for name in set(COLUMNS) - {"failures", "untimed", "unread", *GENERATION}:
        assert f"tables/{name}.parquet holds no rows" in text


def test_unreadable_and_incomplete_tables_are_named(make_run: Build) -> None:
    """A damaged table and one without a needed column count as not measured."""
    folder = make_run(changed={"pairs": pd.DataFrame({"first": ["a"]})})
    (folder / "tables/speed.parquet").write_bytes(b"no parquet")
    text = written(folder)
    assert "tables/speed.parquet cannot be read" in text
    assert "tables/pairs.parquet lacks the columns second" in text
    assert not (folder / "tables/speed.csv").exists()


def test_bare_record_is_enough(tmp_path: Path) -> None:
    """An interrupted run with an almost empty record and no tables still has a report that says so."""
    (tmp_path / "run.json").write_text('{"schema": 1, "status": "interrupted", "suite": null, "backends": [7]}')
    text = written(tmp_path)
    outline(text)
    assert "Its status is “interrupted”" in text


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_folder_without_record_is_refused(tmp_path: Path, content: str | None) -> None:
    """A folder without a readable run.json is refused in one line."""
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(StoreError, match=r"^.*run\.json: .*: give the folder of a run$"):
        build(tmp_path)


def test_hostile_text_is_shown_as_text(judged_run: Path) -> None:
    """Markup in names, errors and notes is shown, not obeyed, in the page and its charts."""
    text = (judged_run / "report.html").read_text(encoding="utf-8")
    parsed = outline(text)
    assert "<script" not in text.lower()
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert all((a.get("src") or "").startswith("data:image/webp") for tag, a in parsed.tags if tag == "img")
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert "".join(parsed.text).count("<script>alert(1)</script>") > 20


def test_hostile_text_is_inert_in_markdown(judged_run: Path) -> None:
    """In Markdown no markup, link or table break of a backend survives."""
    text = (judged_run / "report.md").read_text(encoding="utf-8")
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    assert "<" not in prose
    assert "](" not in prose
    assert "://" not in prose
    widths: set[int] = set()
    for line in prose.splitlines():
        width = len(re.findall(r"(?<!\\)\|", line))
        widths = widths | {width} if width else set()
        assert len(widths) <= 1


def test_long_texts_are_bounded(judged_run: Path) -> None:
    """No text of a run takes more than 300 characters of the page."""
    text = (judged_run / "report.html").read_text(encoding="utf-8")
    longest = max("".join(outline(text).text).split("\n"), key=lambda line: line.count("evil"))
    assert longest.count("evil") < 20


def test_tables_and_charts_are_accessible(make_run: Build) -> None:
    """Every table has a caption and scoped headers, every chart a role and a title, every picture its text."""
    text = written(make_run())
    tags = outline(text).tags
    count = [tag for tag, _ in tags].count
    assert count("table") == count("caption") > 10
    assert all(attributes.get("scope") in {"col", "row"} for tag, attributes in tags if tag == "th")
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(charts) == 10
    for svg in charts:
        ident = re.search(r'^<svg role="img" aria-labelledby="(chart\d+-title)"', svg)
        assert ident
        assert f'<title id="{ident[1]}">' in svg
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    idents = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(idents) == len(set(idents))
    assert ("html", {"lang": "en"}) in tags
    assert {"main", "header", "nav", "footer"} <= {tag for tag, _ in tags}


def test_links_of_the_page_have_targets(make_run: Build) -> None:
    """Every link within the page leads to an element."""
    tags = outline(written(make_run())).tags
    idents = {attributes.get("id") for _, attributes in tags}
    links = [str(attributes["href"])[1:] for tag, attributes in tags if tag == "a"]
    assert links
    assert set(links) <= idents


def test_a_large_run_stays_under_the_limit(make_run: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve backends whose pictures cannot be made small: the page is under 5 MB and says what it left out."""
    monkeypatch.setattr("reports.html.charts", lambda _: {})  # small, and slow to draw
    folder = make_run()
    noise = np.random.default_rng(5).integers(0, 256, (8, 128, 128, 3), dtype=np.uint8)
    for i, picture in enumerate(noise):
        Image.fromarray(picture).save(folder / "pictures" / f"noise-{i}.png")
    for path in (folder / "tables").glob("*.parquet"):
        frame = pd.read_parquet(path)
        if "backend" in frame:
            mine = frame[frame["backend"] == "sr3"]
            frame = pd.concat([frame, *(mine.assign(backend=f"sr3-{i}") for i in range(10))], ignore_index=True)
        for column in {"input", "output", "target"} & set(frame):
            frame[column] = [f"pictures/noise-{i % 8}.png" for i in range(len(frame))]
        frame.to_parquet(path)
    text = page(load(folder))
    assert 3_000_000 < len(text.encode()) < 5_000_000
    assert "sr3-9" in text
    assert "rows of pictures were left out" in text


def test_csv_files_equal_the_tables(make_run: Build) -> None:
    """Each CSV holds the rows of its table digit by digit."""
    folder = make_run()
    build(folder)
    for path in (folder / "tables").glob("*.parquet"):
        csv = pd.read_csv(path.with_suffix(".csv"), dtype=str, keep_default_na=False)
        table = pd.read_parquet(path).map(lambda v: "" if isinstance(v, float) and math.isnan(v) else str(v))
        assert csv.to_dict("list") == table.to_dict("list")


def test_json_holds_the_same_figures(make_run: Build) -> None:
    """The JSON parses strictly and has every row: NaN as null, infinity as the text "inf"."""
    folder = make_run()
    report = json.loads(written(folder, "report.json"), parse_constant=pytest.fail)
    for name in COLUMNS:
        table = pd.read_parquet(folder / "tables" / f"{name}.parquet").to_dict("records")
        assert [[_same(row[k]) for k in row] for row in table] == [list(row.values()) for row in report["tables"][name]]
    assert report["findings"]
    assert report["record"]["backends"][3]["options"] == {"steps": 8}


def _same(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf"
    return value


def test_pictures_give_way_to_the_page_limit(make_run: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the page's budget worst cases lose their pictures, mildest first, and the page says so."""
    folder = make_run()
    whole = page(load(folder))
    monkeypatch.setattr("reports.html.PAGE_LIMIT", len(whole.encode()) - 20_000)
    text = page(load(folder))
    assert len(text.encode()) < len(whole.encode()) - 20_000
    assert "rows of pictures were left out" in text
    assert 0 < text.count("data:image/webp") < whole.count("data:image/webp")
    assert "Output of sr3, image face_0031" in text


def test_pictures_outside_the_run_are_refused(make_run: Build, tmp_path: Path) -> None:
    """A stored path that leaves the run folder, or is no PNG, puts no picture on the page."""
    folder = make_run()
    secret = tmp_path / "secret.png"
    secret.write_bytes(next((folder / "pictures").glob("*.png")).read_bytes())
    (folder / "fake.png").write_bytes(b"GIF89a")
    worst = pd.read_parquet(folder / "tables/worst.parquet").head(1)
    worst[["input", "output", "target"]] = ["../secret.png", str(secret), "fake.png"]
    worst.to_parquet(folder / "tables/worst.parquet")
    text = written(folder)
    assert "3 pictures could not be read" in text
    assert "image face_0031" not in text
