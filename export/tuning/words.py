"""What tune.py found, in words: what won, what lost, and why. Every sentence rests on figures in the records."""

from __future__ import annotations

from typing import List, Mapping, Optional, Sequence

from gradseg.base.pages import points
from gradseg.export.tuning.state import Record
from gradseg.export.tuning.verdict import (
    MARGIN,
    Decision,
    Ratio,
    Turns,
    all_frames,
    decided,
    fastest,
    percentile,
    ratio,
)
from gradseg.export.tuning.worker import ROUNDING, rounding_share

WORTH_SAYING = 0.05  # share of the time
CONVOLUTIONS = ("QLinearConv", "Conv", "FusedConv", "ConvTranspose")  # as ONNX Runtime calls them


def turns_of(record: Record) -> Turns:
    """Its rounds; where it took part in none, its first look as one of its own."""
    return record.turns or ({0: record.screening} if record.screening else {})


def p(record: Record, share: float) -> Optional[float]:
    """A percentile of all its timed frames, milliseconds."""
    frames = all_frames(turns_of(record))
    return percentile(frames, share) if frames else None


def usable(records: Sequence[Record]) -> List[Record]:
    """Those that may win: measured, not refused, and with fewer bits only if their labels were looked at."""
    return [each for each in records if not each.state and each.screening and (each.exact or each.score is not None)]


def decision_of(records: Sequence[Record]) -> Optional[Decision]:
    allowed = usable(records)
    return decided({each.name: turns_of(each) for each in allowed}, [each.name for each in allowed if each.exact])


def verdict(records: Sequence[Record], decision: Decision, base: Record) -> List[str]:
    """The whole finding, the winner first."""
    by_name = {record.name: record for record in records}
    winner = by_name[decision.winner]
    lines = [_won(winner, base), *_against_float(winner, by_name, decision)]
    for engine in dict.fromkeys(record.engine for record in records):
        own = [record for record in records if record.engine == engine]
        lines += [*_int8_in(engine, own), *_rewrites_in(engine, own)]
    for state, words in (("refused", "thrown out"), ("unavailable", "not here")):
        lines += [f"{words}: {each.title}: {each.reason}" for each in records if each.state == state]
    late = [each.title for each in records if not each.state and not each.screening]
    if late:
        lines.append(f"not measured, the time was over: {'; '.join(late)}")
    unseen = [e.title for e in records if not e.state and e.screening and not e.exact and e.score is None]
    if unseen:
        lines.append(f"measured, but the time was over before their labels were looked at: {'; '.join(unseen)}")
    return lines


def _won(winner: Record, base: Record) -> str:
    text = f"{winner.title} won: {p(winner, 0.5):.2f} ms per frame (p99 {p(winner, 0.99):.2f})"
    if winner is not base:
        text += f", {_speed(winner, base):.2f}x as fast as {base.title}"
    quality = quality_text(winner, base)
    return f"{text}; {quality}" if quality else text


def _against_float(winner: Record, by_name: Mapping[str, Record], decision: Decision) -> List[str]:
    """Fewer bits against the best float32 candidate."""
    best = by_name.get(decision.best_exact or "")
    if best is None:
        return []
    if winner is not best:
        found = ratio(turns_of(winner), turns_of(best))
        share = f"{_speed(best, winner):.2f}" if found is None else ratio_text(found)
        basis = _basis(winner, best)
        return [f"it takes {share} of the time of the fastest in float32, {best.title}{basis}"]
    fewer = {e.name: turns_of(e) for e in usable(list(by_name.values())) if not e.exact}
    name = fastest(fewer)
    if name is None:
        return []
    rival, found = by_name[name], ratio(fewer[name], turns_of(best))
    if found is not None and found.value > 1.0 + MARGIN:
        share = f"{ratio_text(found)} of the winner's time"
        return [f"fewer bits do not pay here: the fastest, {rival.title}, takes {share}"]
    share = f"took {_speed(best, rival):.2f}" if found is None else f"takes {ratio_text(found)}"
    share = f"{share} of its time{_basis(rival, best)}"
    return [f"float32 is kept: {rival.title} {share}, which is not surely less, and changes labels"]


def _int8_in(engine: str, records: Sequence[Record]) -> List[str]:
    """INT8 against float32 within one engine, with what the profiler saw."""
    int8 = fastest_of([each for each in records if each.precision == "int8"])
    floats = fastest_of([each for each in records if each.exact])
    if int8 is None or floats is None:
        return []
    slower = _speed(floats, int8)
    if slower <= 1.0 - MARGIN:
        return [f"INT8 in {engine} takes {slower:.2f} of the time of its best float32 form{_basis(int8, floats)}"]
    how = f"{slower:.2f}x slower than its best float32 form" if slower > 1.0 + MARGIN else "as fast as float32"
    how, reasons = f"{how}{_basis(int8, floats)}", _reasons(int8, floats)
    return [f"INT8 is not worth it in {engine} here: {how}{f' ({reasons})' if reasons else ''}"]


def _basis(one: Record, other: Record) -> str:
    """Says so where two never took turns with each other."""
    return "" if ratio(turns_of(one), turns_of(other)) is not None else ", by their first turns, taken apart"


def _reasons(int8: Record, floats: Record) -> str:
    """What the profiles of both say; "" where they do not say why."""
    if sum(int8.operators.values()) <= sum(floats.operators.values()):  # absent, or it tells another story
        return ""
    said = []
    share = rounding_share(int8.operators)
    if share > WORTH_SAYING:
        said.append(f"{100 * share:.0f} % of its time goes into rounding to INT8 and back")
    before, now = (sum(each.operators.get(name, 0.0) for name in CONVOLUTIONS) for each in (floats, int8))
    left = now - int8.operators.get("QLinearConv", 0.0)
    if now > (1 - WORTH_SAYING) * before:
        said.append(f"its convolutions take {now:.1f} ms, {left:.1f} of them in float, float32's {before:.1f}")
    grown = {
        name: time - floats.operators.get(name, 0.0)
        for name, time in int8.operators.items()
        if name not in (*CONVOLUTIONS, *ROUNDING)
    }
    name = max(grown, key=lambda each: grown[each], default="")
    if name and grown[name] > WORTH_SAYING * sum(int8.operators.values()):
        said.append(f"{name} takes {int8.operators[name]:.1f} ms, in float32 {floats.operators.get(name, 0.0):.1f}")
    return "; ".join(said)


def _rewrites_in(engine: str, records: Sequence[Record]) -> List[str]:
    """What rewriting gained where one engine ran several float32 forms."""
    floats = [each for each in records if each.exact and not each.state and each.screening and not each.base]
    best = fastest_of(floats)
    plain = next((each for each in floats if each.rewrite == "as exported"), None)
    if best is None or plain is None or best is plain or _speed(best, plain) < 1.0 + MARGIN:
        return []
    speed = f"{_speed(best, plain):.2f}x as fast as exported, with the same labels{_basis(best, plain)}"
    return [f"in {engine} float32 is fastest with {best.rewrite}: {speed}"]


def fastest_of(records: Sequence[Record]) -> Optional[Record]:
    """The fastest that was measured, thrown out or not; None if none was."""
    seen = {each.name: each for each in records if each.screening and each.state != "unavailable"}
    name = fastest({key: turns_of(each) for key, each in seen.items()})
    return None if name is None else seen[name]


def _speed(fast: Record, slow: Record) -> float:
    """The slow one's time over the fast one's: from common rounds, else from the medians."""
    found = ratio(turns_of(slow), turns_of(fast))
    return found.value if found is not None else (p(slow, 0.5) or 0.0) / max(p(fast, 0.5) or 0.0, 1e-6)


def ratio_text(found: Ratio) -> str:
    return f"{found.value:.2f}" + (f" ({found.low:.2f} to {found.high:.2f})" if found.rounds > 1 else "")


def quality_text(record: Record, base: Record) -> str:
    """mIoU and its change, or the share of FP32's labels."""
    if record.score is None:
        return "labels equal to FP32's" if record.exact and record is not base else ""
    if record.score["miou"] is None:
        return f"{100 * record.score['agreement']:.3f} % of the labels are FP32's (no mIoU without labels)"
    text = f"mIoU {100 * record.score['miou']:.2f}"
    change = lost(record, base)
    return text if record is base or change is None else f"{text} ({points(-change)} points)"


def lost(record: Record, base: Record) -> Optional[float]:
    """Points of mIoU lost against FP32; None where it was not measured."""
    if record.score is None or base.score is None or record.score["miou"] is None:
        return None
    return 100.0 * (float(base.score["miou"]) - float(record.score["miou"]))


def outcome(record: Record, decision: Decision) -> str:
    """What came of one candidate, in a few words, for the table."""
    if record.state:
        return f"{'thrown out' if record.state == 'refused' else 'not here'}: {record.reason}"
    if not record.screening:
        return "not measured, the time was over"
    if record.name == decision.winner:
        return "won"
    found = decision.ratios.get(record.name)
    if found is None:
        return "far behind at the first look" if record.score or record.exact else "its labels were not looked at"
    if found.low > 1.0:
        return f"{ratio_text(found)} of the winner's time"
    return f"level with the winner: {ratio_text(found)} of its time"


def text_table(records: Sequence[Record], decision: Decision, base: Record) -> List[str]:
    """The candidates side by side, the fastest first. ratio: to the winner's time in the same rounds."""
    lines = [f"{'candidate':<34}{'p50 ms':>8}{'p99 ms':>8}{'ratio':>7}{'mIoU':>7}{'change':>8}{'MB':>7}{'RAM MB':>8}"]
    for record in ordered(records):
        if record.screening:
            miou = record.score["miou"] if record.score else None
            change = lost(record, base)
            mark = "*" if record.name == decision.winner else " "
            found = decision.ratios.get(record.name)
            lines.append(
                f"{mark} {record.name:<32}{p(record, 0.5):>8.2f}{p(record, 0.99):>8.2f}"
                f"{'–' if found is None else f'{found.value:.2f}':>7}"
                f"{'–' if miou is None else f'{100 * miou:.2f}':>7}{'–' if change is None else points(-change):>8}"
                f"{record.size_bytes / 1e6:>7.2f}{record.memory_bytes / 1e6:>8.0f}"
            )
    return lines


def ordered(records: Sequence[Record]) -> List[Record]:
    """Measured ones by their median, then the others as they come."""
    return sorted(records, key=lambda record: p(record, 0.5) or float("inf"))
