"""A family's variants as a picture: quality against the energy of an output token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from economizer.variants.manifest import Interval, Manifest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

_FULL = Interval(value=1.0, low=1.0, high=1.0)  # by definition
_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9")
# Where a label may stand beside its point, in points (1/72 inch), the first that is free.
_PLACES = ((8, 6), (8, -12), (-8, 6), (-8, -12), (8, 20), (8, -26), (-8, 20), (-8, -26), (8, 34), (-8, 34))

_SPREAD_MAX = 4  # times the smallest energy


@dataclass(frozen=True, kw_only=True, slots=True)
class _Point:
    name: str
    full: bool
    promoted: bool
    energy: Interval
    quality: Interval
    colour: str


def plot_family(manifests: Sequence[Manifest], path: Path) -> None:
    """Writes a PNG: a point with both intervals per variant, at the largest batch that all were measured at.

    The full model is a star; a variant that the gate did not promote is hollow. Those that lack a figure, or have it
    from other hardware or by another meter, are named below the axis.
    """
    known = _comparable([one for one in manifests if _quality(one) is not None and _decode_j(one)])
    batches = set.intersection(*(set(_decode_j(one)) for one in known)) if known else set()
    batch = max(batches, default=None)
    points = [] if batch is None else list(_points(known, batch))
    figure = Figure(figsize=(7.5, 5.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for point in points:
        _draw(axes, point)
    _spread(axes, points)
    left_out = sorted({one.variant for one in manifests} - {point.name for point in points})
    _describe(axes, known, batch, left_out)
    canvas.draw()  # the labels look for free places, which lie where they will only once it is laid out
    _label(axes, canvas, points)
    figure.savefig(path, dpi=110, format="png")


def _comparable(known: Sequence[Manifest]) -> list[Manifest]:
    """Those measured as the full model was, or as the first one where the full model is not among them."""
    first = next(iter(sorted(known, key=lambda one: not one.full)), None)
    return [one for one in known if first is not None and _measured(one) == _measured(first)]


def _measured(manifest: Manifest) -> tuple[str, str | None] | None:
    return None if manifest.engine is None else (manifest.engine.hardware, manifest.engine.energy_method)


def _hardware(manifest: Manifest) -> str:
    return "" if manifest.engine is None else manifest.engine.hardware


def _points(known: Sequence[Manifest], batch: int) -> Iterator[_Point]:
    for index, one in enumerate(sorted(known, key=lambda one: (not one.full, one.variant))):
        quality = _quality(one)
        assert quality is not None
        yield _Point(
            name=one.variant,
            full=one.full,
            promoted=one.full or (one.verdict is not None and one.verdict.promoted),
            energy=_decode_j(one)[batch],
            quality=quality,
            colour=_COLOURS[index % len(_COLOURS)],
        )


def _quality(manifest: Manifest) -> Interval | None:
    if manifest.full:
        return _FULL
    return None if manifest.evaluation is None else manifest.evaluation.quality


def _decode_j(manifest: Manifest) -> dict[int, Interval]:
    return dict((manifest.engine and manifest.engine.decode_j_per_token) or {})


def _draw(axes: Axes, point: _Point) -> None:
    axes.errorbar(
        point.energy.value,
        point.quality.value,
        xerr=_error(point.energy),
        yerr=_error(point.quality),
        fmt="*" if point.full else "o",
        markersize=15 if point.full else 8,
        markerfacecolor=point.colour if point.promoted else "white",
        color=point.colour,
        elinewidth=1,
        capsize=3,
    )


def _error(interval: Interval) -> list[list[float]]:
    """How far the interval reaches to both sides of its value, which an interval of another kind may not hold."""
    return [[max(0.0, interval.value - interval.low)], [max(0.0, interval.high - interval.value)]]


def _spread(axes: Axes, points: Sequence[_Point]) -> None:
    """A logarithmic scale where one variant's energy would push all others together."""
    energies = [point.energy.value for point in points]
    if energies and max(energies) > _SPREAD_MAX * min(energies) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())


def _describe(axes: Axes, known: Sequence[Manifest], batch: int | None, left_out: Sequence[str]) -> None:
    if known:
        axes.set_title(f"{known[0].family}: quality against energy\n{_hardware(known[0])}", fontsize=10, wrap=True)
    else:
        axes.set(xticks=[], yticks=[])
    axes.set_ylabel("quality (agreement with the full model, 95 % interval)")
    label = "no variant with a known quality and energy" if batch is None else f"joules per output token, batch {batch}"
    note = f"\nnot shown, quality or energy by this meter here unknown: {', '.join(left_out)}" if left_out else ""
    axes.set_xlabel(label + note, wrap=True)
    axes.grid(alpha=0.25)
    axes.margins(0.12)
    marks = (("full model", "*", "0.3"), ("promoted", "o", "0.3"), ("not promoted", "o", "white"))
    handles = [
        Line2D([], [], linestyle="none", marker=marker, markerfacecolor=face, color="0.3", markersize=8, label=text)
        for text, marker, face in marks
    ]
    axes.figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)


def _label(axes: Axes, canvas: FigureCanvasAgg, points: Sequence[_Point]) -> None:
    """Names each point at the first place beside it where neither a point nor another name is in the way."""
    at = {point.name: axes.transData.transform((point.energy.value, point.quality.value)) for point in points}
    taken = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in at.values()]
    for point in points:
        for place in _PLACES:
            text = axes.annotate(
                point.name,
                (point.energy.value, point.quality.value),
                xytext=place,
                textcoords="offset points",
                ha="left" if place[0] > 0 else "right",
                color=point.colour,
                fontsize=9,
                arrowprops={"arrowstyle": "-", "color": "0.7", "lw": 0.5} if abs(place[1]) > 12 else None,
            )
            box = text.get_window_extent(canvas.get_renderer())
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            if place == _PLACES[-1] or (inside and not any(box.overlaps(other) for other in taken)):
                taken.append(box)
                break
            text.remove()
