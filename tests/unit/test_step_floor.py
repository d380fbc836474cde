"""The step model's floor against the step model itself, over random models, splits, steps and ceilings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bottleneck.diagnosis.attribution.link_time import link_parts
from bottleneck.diagnosis.attribution.node_time import floor_of
from bottleneck.diagnosis.attribution.parts import DECODE, PREFILL, Work
from bottleneck.diagnosis.observations.link import LinkFacts
from bottleneck.diagnosis.observations.node import NodeFacts
from bottleneck.diagnosis.observations.observed import Observations
from bottleneck.performance.collectives import Link, algorithm
from bottleneck.performance.formats import FORMATS, WeightFormat
from bottleneck.performance.layers import dense_shape, feed_forward
from bottleneck.performance.roofline import demand, step_floor
from bottleneck.performance.scheduler import Steps
from bottleneck.performance.served import Accelerator, Served
from bottleneck.performance.shape import Attention, Layer, ModelShape, Split
from bottleneck.performance.step import PARAMETERS, step_parts
from bottleneck.plan.workers import ServerSettings
from bottleneck.runs.topology import Group, Topology

NOTHING = np.log([1.0])[0]
with np.errstate(divide="ignore"):
    PERFECT = np.array(
        [np.inf if name == "overlap" else -np.inf if name.endswith("seconds") else NOTHING for name in PARAMETERS]
    )
"""Every ceiling reached, reading hidden behind multiplying or the other way round, nothing spent beside."""

rates = st.floats(1e6, 1e16)
counts = st.integers(1, 4096)


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    key_value_heads = draw(st.sampled_from([1, 2, 4, 8]))
    hidden = 64 * draw(st.integers(1, 64))
    shape = dense_shape(
        layers=draw(st.integers(1, 12)),
        hidden_size=hidden,
        intermediate_size=64 * draw(st.integers(1, 128)),
        attention_heads=key_value_heads * draw(st.integers(1, 8)),
        key_value_heads=key_value_heads,
        head_dim=draw(st.sampled_from([64, 128])),
        vocabulary_size=draw(st.integers(100, 200_000)),
        context_length=32768,
        tied_embeddings=draw(st.booleans()),
    )
    if not draw(st.booleans()):
        return shape
    copies = draw(st.integers(2, 64))
    sparse = Layer(
        (*shape.layers[0].matrices[:4], *feed_forward(hidden, 128, True, copies, draw(st.integers(1, copies)))),
        Attention(256, 1, 512, draw(st.sampled_from([None, 128])), draw(st.sampled_from([0, 4096]))),
        hidden,
        hidden,
        hidden,
        hidden,
    )
    layers = tuple(sparse if index % 2 else layer for index, layer in enumerate(shape.layers))
    return ModelShape(layers, hidden, 8, 8, shape.vocabulary_size, shape.context_length, shape.tied_embeddings)


@st.composite
def splits(draw: st.DrawFn, layers: int) -> tuple[Split, int | None]:
    pipeline = draw(st.integers(1, layers))
    link = draw(
        st.none() | st.builds(Link, st.floats(0, 0.1), rates, st.sampled_from(["gloo", "nccl", "xccl", "other"]))
    )
    split = Split(draw(st.sampled_from([1, 2, 4])), pipeline, link)
    return split, draw(st.none() | st.integers(0, pipeline - 1))


@st.composite
def steps(draw: st.DrawFn) -> Steps:
    count = draw(st.integers(1, 4))
    return Steps(*(np.array(draw(st.lists(counts, min_size=count, max_size=count)), dtype=float) for _ in range(5)))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_floor_is_the_step_model_with_every_ceiling_reached(data: st.DataObject) -> None:
    shape = data.draw(shapes())
    split, stage = data.draw(splits(len(shape.layers)))
    served = Served(shape, FORMATS[data.draw(st.sampled_from(sorted(FORMATS)))], 8192, data.draw(st.floats(0.5, 2)))
    made, memory, peak = data.draw(steps()), data.draw(rates), data.draw(rates)
    floor = step_floor(made, served, peak, memory, split, stage)
    parts = step_parts(made, served, Accelerator("one", memory, peak, 1e-5), PERFECT, split, stage)
    assert parts.total.tolist() == floor.total.tolist()
    for part, least in (
        (parts.linear, floor.linear),
        (parts.activations, floor.activations),
        (parts.cache, floor.cache),
        (parts.attention, floor.attention),
        (parts.messages, floor.latency + floor.transfer),
    ):
        assert part.tolist() == least.tolist()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_stages_take_turns_on_the_whole_step(data: st.DataObject) -> None:
    shape = data.draw(shapes())
    split, _ = data.draw(splits(len(shape.layers)))
    served, made = Served(shape, FORMATS["w4a16"], 8192), data.draw(steps())
    whole = demand(made, served, split)
    stages = [demand(made, served, split, stage) for stage in range(split.pipeline_parallel)]
    for name in (
        "weight_bytes",
        "operations",
        "activation_bytes",
        "cache_bytes",
        "latency_seconds",
        "transfer_seconds",
    ):
        assert sum(getattr(each, name) for each in stages) == pytest.approx(getattr(whole, name), rel=1e-9)


def test_the_mean_of_equal_steps_stands_for_all_of_them() -> None:
    served = Served(
        dense_shape(
            layers=8,
            hidden_size=1024,
            intermediate_size=2816,
            attention_heads=16,
            key_value_heads=4,
            head_dim=64,
            vocabulary_size=8192,
            context_length=2048,
        ),
        FORMATS["w4a16"],
        2048,
    )
    four = Steps(*(np.full(4, value) for value in (8.0, 8.0, 4000.0, 0.0, 0.0)))
    one = step_floor(Steps.one(8, 8, 4000), served, 1e12, 1e10).times(4)
    assert one.total[0] == pytest.approx(step_floor(four, served, 1e12, 1e10).total.sum())


def _profile(shape: ModelShape, weights: str) -> Any:
    return SimpleNamespace(model=_Model(shape, weights))


class _Model:
    """Stands for a profile's model: it gives its shape and its format."""

    def __init__(self, shape: ModelShape, weights: str) -> None:
        self._shape, self._weights = shape, weights

    def model_shape(self) -> ModelShape:
        return self._shape

    def weight_format(self) -> WeightFormat:
        return FORMATS[self._weights]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_ledgers_floor_of_a_step_is_the_step_models(data: st.DataObject) -> None:
    shape, weights = data.draw(shapes()), data.draw(st.sampled_from(sorted(FORMATS)))
    tensor, pipeline = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.integers(1, len(shape.layers)))
    nodes = tuple(f"node{rank}" for rank in range(tensor * pipeline))
    rank = data.draw(st.integers(0, len(nodes) - 1))
    memory, peak = data.draw(rates), data.draw(rates)
    topology = Topology(
        groups=(Group(nodes[0], nodes),),
        settings=ServerSettings(tensor_parallel=tensor, pipeline_parallel=pipeline, max_num_batched_tokens=4096),
        profile=_profile(shape, weights),
    )
    facts = NodeFacts(nodes[rank], gemm_interval=(peak / 2, peak), memory_read_interval=(memory / 2, memory))
    kind, count, tokens = data.draw(st.sampled_from([PREFILL, DECODE])), data.draw(counts), data.draw(counts)
    found = floor_of(Observations(topology), topology.groups[0], facts, Work(kind, 1.0, count, float(count * tokens)))
    step = Steps.one(tokens, tokens) if kind == DECODE else Steps.one(tokens, 0.0, prompt_tokens=tokens)
    parts = step_parts(
        step,
        Served(shape, FORMATS[weights], 4096),
        Accelerator("one", memory, peak, 1e-5),
        PERFECT,
        Split(tensor, pipeline),
        rank // tensor,
    )
    assert found is not None
    for floor, part in (
        (found.linear, parts.linear),
        (found.activations, parts.activations),
        (found.cache, parts.cache),
        (found.attention, parts.attention),
    ):
        assert floor.tolist() == (count * part).tolist()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_ledgers_link_is_the_step_models(data: st.DataObject) -> None:
    shape = data.draw(shapes())
    tensor, pipeline = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.integers(1, len(shape.layers)))
    assume(tensor * pipeline > 1)
    nodes = tuple(f"node{rank}" for rank in range(tensor * pipeline))
    backend, count, tokens = data.draw(st.sampled_from(["gloo", "nccl", "xccl"])), data.draw(counts), data.draw(counts)
    latency, rate = data.draw(st.floats(1e-6, 0.1)), data.draw(rates)
    topology = Topology(
        groups=(Group(nodes[0], nodes),),
        link="direct",
        settings=ServerSettings(tensor_parallel=tensor, pipeline_parallel=pipeline),
        profile=_profile(shape, "bf16"),
    )
    link = LinkFacts("direct", {}, rate, message_latency_seconds=latency, backend=backend)
    work = Work(PREFILL, 1e300, count, float(count * tokens))
    parts = {
        part.resource: part.seconds
        for part in link_parts(Observations(topology, link=link), topology.groups[0], work, (work, Work(DECODE, 1.0)))
    }
    trips = max(1, algorithm(backend).all_trips(tensor))
    floor = step_floor(
        Steps.one(tokens, 0.0, prompt_tokens=tokens),
        Served(shape, FORMATS["bf16"], 4096),
        1e12,
        1e12,
        Split(tensor, pipeline, Link(latency / trips, rate, backend)),
    )
    assert parts["link_latency"] == count * floor.latency[0]
    assert parts["link_transfer"] == pytest.approx(count * floor.transfer[0], rel=1e-12)
