"""Works, energies and step models for Hypothesis to draw."""

from economizer.energy.step_model import Coefficients, StepModel
from economizer.energy.types import Work
from hypothesis import strategies as st

amounts = st.one_of(st.just(0.0), st.floats(1e-9, 1.0), st.floats(1.0, 1e12))
works_of = st.builds(
    Work, prefill_tokens=amounts, prefill_context=amounts, decode_tokens=amounts, decode_context=amounts
)
energies = st.one_of(st.integers(0, 20), st.integers(0, 10**9), st.integers(0, 10**20))
coefficients = st.builds(
    Coefficients.of, st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e6)), min_size=6, max_size=6)
)
observations = st.tuples(works_of, amounts, energies, st.floats(0, 100))


@st.composite
def models(draw: st.DrawFn) -> StepModel:
    model = StepModel(draw(st.none() | coefficients))
    for work, steps, energy, seconds in draw(st.lists(observations, max_size=8)):
        model.observe(work, steps, energy, seconds)
        model.judge([work, work], steps, energy, seconds)
    return model
