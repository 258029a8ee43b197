import re
from html.parser import HTMLParser

from tailorbird.report.page import html, page
from tailorbird.report.record import Point, RunReport, StageCost, TargetResult
from tests.report.test_record import full

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>&\x1b[31m\u202e'


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words += data


def hostile() -> RunReport:
    point = Point(
        name=HOSTILE, latency_ms=1.0, accuracy=0.5, params=1, macs=1, size_mb=1.0, device=HOSTILE
    )
    target = TargetResult(
        name=HOSTILE,
        device=HOSTILE,
        limits={"latency_ms": 1.0, HOSTILE: 1.0},
        measured={"latency_ms": 2.0},
        met=False,
        accuracy=0.4,
        accuracy_before=0.3,
        onnx=f"javascript:alert(3)/{HOSTILE}",
        reason=HOSTILE,
        lowest={HOSTILE: 1.0},
        replaced=(HOSTILE,),
    )
    return RunReport(
        run=HOSTILE,
        seed=0,
        teacher={HOSTILE: point},
        donors=(point,),
        targets=(target,),
        stages=(StageCost(name=HOSTILE, minutes=1.0, detail=HOSTILE),),
        rejections={HOSTILE: 1},
        environment={HOSTILE: [HOSTILE]},
        accuracy_kind=HOSTILE,
    )


def test_hostile_names_stay_text():
    text = page(hostile())
    reader = Reader()
    reader.feed(text)
    assert "script" not in reader.tags
    assert reader.tags.count("img") == 1
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert reader.words.count("<script>alert(1)</script>") > 10
    links = [value for name, value in reader.attributes if name == "href"]
    assert links and all(link is not None and link.startswith("./") for link in links)
    assert "\x1b" not in text and "\u202e" not in text


def test_page_needs_nothing_from_elsewhere(tmp_path):
    text = html(full(), tmp_path / "report.html").read_text()
    outside = re.findall(r"(?:src|href)=\"([^\"]{1,30})|url\(|@import|https?://", text)
    assert [start[:10] for start in outside] == ["data:image", "./students"]
    assert "default-src 'none'" in text


def test_page_tells_figures_stages_and_rejections():
    reader = Reader()
    reader.feed(page(full()))
    for word in ("94.00", "1.900", "4 alternatives", "shape", "a..b -> c", "1 of 1 targets met"):
        assert word in reader.words


def test_an_empty_run_has_a_page():
    reader = Reader()
    reader.feed(page(RunReport(run="r", seed=0)))
    assert "0 of 0 targets met" in reader.words and "table" not in reader.tags
