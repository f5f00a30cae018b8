"""The picture of a repair: accuracy and attack success along the curves, single networks as lines."""

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.figures import CURVE, FGE, PAIR, SINGLE, png
from trainer.sanitize.measure import Score, Share
from trainer.sanitize.results import Results

COLOURS = {"curve": CURVE, "fine-tuning": FGE, "from scratch": PAIR}
DASHES = ("-", "--", ":", "-.")  # by rate, the first one solid

_Part = Callable[[Score], Share | None]


def draw(results: Results) -> bytes:
    """On test rows. Where no member may be exported is grey; what is recommended is drawn wide."""
    panels: list[tuple[str, _Part]] = [("accuracy, %", lambda score: score.accuracy)]
    if results.suspect.test.attack_success is not None:
        panels.append(("attack success, %", lambda score: score.attack_success))
    else:
        panels.append(("rows answered otherwise than by the suspect, %", lambda score: score.changed))

    def fill(figure: Figure) -> None:
        axes: list[Axes] = list(figure.subplots(1, 2, sharex=True))
        for axis, (title, part) in zip(axes, panels, strict=True):
            _panel(axis, results, part)
            axis.set_title(title)
            axis.set_xlabel("t: suspects at 0 and 1")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)

    return png(fill, (9.2, 4.4 + 0.12 * len(results.candidates)))


def _panel(axis: Axes, results: Results, part: _Part) -> None:
    low, high = results.options.allowed
    for start, end in ((0.0, low), (high, 1.0)):
        axis.axvspan(start, end, color="#f0f0f0", linewidth=0)
    styles = dict(zip(results.options.rates, DASHES * len(results.options.rates), strict=False))
    for candidate in results.candidates:
        colour, dashes = COLOURS[candidate.method], styles[candidate.rate]
        width = 3.0 if candidate == results.recommended else 1.4
        label = f"{candidate.method}, rate {candidate.rate:g}"
        if candidate.between is None:
            height = _percent(part(candidate.scores.test))
            axis.axhline(height, color=colour, linestyle=dashes, linewidth=width, label=label)
            continue
        points = results.curves[f"{candidate.rate:g}"]
        ts, values = [point.t for point in points], [_percent(part(point.scores.test)) for point in points]
        axis.plot(ts, values, color=colour, linestyle=dashes, linewidth=1.8, label=label)
        ensemble = [_percent(part(candidate.scores.test))] * 2
        axis.plot(candidate.between, ensemble, color=colour, linestyle=dashes, linewidth=width, marker="|")
    axis.axhline(_percent(part(results.suspect.test)), color=SINGLE, linewidth=0.8, label="suspect")


def _percent(share: Share | None) -> float:
    assert share is not None
    return 100 * share.value
