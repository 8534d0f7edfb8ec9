"""Reading compiled programs: estimates, loops, calls, collectives and what hides them."""

import pytest

from bert_jax.chips import peak_flops
from bert_jax.planning.collectives import QUEUED, SHORT, SYNCHRONOUS, find_collectives
from bert_jax.planning.estimate import find_unestimated
from bert_jax.planning.hlo import parse_hlo, shape_bytes
from bert_jax.planning.topology import Topology, parse_topology
from bert_jax.planning.uncounted import uncounted_matmuls

SIXTEEN = "replica_groups={{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}}"
CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
NAMED = 'metadata={op_name="jit(f)/layer/dot"}'
TRIPS = 'backend_config={"known_trip_count":{"n":"24"}}'
PROGRAM = f"""HloModule jit_step, is_scheduled=true

%body (arg: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {{
  %arg = (s32[], f32[8,128]{{1,0}}) parameter(0)
  %inner.1 = f32[8,128]{{1,0:T(8,128)}} fusion(%arg), kind=kLoop, calls=%add, {CYCLES % 100}
  ROOT %out = (s32[], f32[8,128]{{1,0}}) tuple(%inner.1)
}}

%condition (arg.1: (s32[], f32[8,128])) -> pred[] {{
  %limit = s32[]{{:T(128)}} constant(24)
  %counter = s32[] get-tuple-element(%arg.1), index=0
  ROOT %less = pred[] compare(%counter, %limit), direction=LT
}}

%unknown (arg.2: (s32[], f32[8,128])) -> pred[] {{
  ROOT %any = pred[] fusion(%arg.2), kind=kLoop, calls=%add
}}

%short (p: f32[8,128]) -> pred[] {{
  ROOT %c = pred[] constant(false)
}}

%long (p.1: f32[8,128]) -> pred[] {{
  ROOT %pass = pred[] fusion(%p.1), kind=kLoop, calls=%finite, {CYCLES % 5000}
}}

%add (a: f32[], b: f32[]) -> f32[] {{
  ROOT %sum = f32[] add(%a, %b)
}}

%wrapped (w: f32[4,128]) -> f32[64,128] {{
  ROOT %all-gather.9 = f32[64,128]{{1,0}} all-gather(%w), channel_id=3, {SIXTEEN}, dimensions={{0}}
}}

ENTRY %main.1 (p0: f32[8,128]) -> f32[8,128] {{
  %p0 = f32[8,128]{{1,0}} parameter(0)
  %fusion.1 = f32[8,128]{{1,0}} fusion(%p0), kind=kLoop, calls=%add, {NAMED}, {CYCLES % 10}
  %while.1 = (s32[], f32[8,128]{{1,0}}) while(%fusion.1), condition=%condition, body=%body, {TRIPS}
  %while.2 = (s32[], f32[8,128]{{1,0}}) while(%while.1), condition=%condition, body=%body
  %while.3 = (s32[], f32[8,128]{{1,0}}) while(%while.2), condition=%unknown, body=%body
  %async-collective-start.1 = (f32[4,128]{{1,0}}, f32[64,128]{{1,0}}) fusion(%p0), kind=kCustom, calls=%wrapped
  %get-tuple-element.1 = f32[64,128]{{1,0}} get-tuple-element(%async-collective-start.1), index=1
  %hides.1 = f32[8,128]{{1,0}} fusion(%p0), kind=kLoop, calls=%add, {CYCLES % 7}
  %async-collective-done.1 = f32[64,128]{{1,0}} fusion(%get-tuple-element.1), kind=kCustom, calls=%wrapped
  %all-reduce.1 = bf16[1024,1024]{{1,0}} all-reduce(%hides.1), channel_id=1, {SIXTEEN}, to_apply=%add
  %conditional.1 = pred[] conditional(%p, %fusion.1, %fusion.1), branch_computations={{%long, %short}}
  %sort.1 = (s32[4096]{{0}}, s32[4096]{{0}}) sort(%p0, %p0), dimensions={{0}}
  ROOT %kernel = f32[8,128]{{1,0}} custom-call(%p0), custom_call_target="tpu_custom_call"
}}
"""
V5E = parse_topology("v5e:4x4")


def test_loops_count_as_often_as_they_run_and_the_rare_branch_does_not() -> None:
    program = parse_hlo(PROGRAM)
    assert program.entry == "main.1"
    loops = 24 * 100 + 24 * 100 + 100  # with a known count, with one read from the condition, with none
    assert program.cycles() == 10 + loops + 7


def test_bytes_of_shapes() -> None:
    assert shape_bytes("(f32[2,3]{1,0}, bf16[4]{0:T(8)}, pred[])") == 24 + 8 + 1
    in_both = "(f32[2,3]{1,0:T(8,128)S(1)}, bf16[4]{0:T(8)(2,1)}, s32[])"
    assert (shape_bytes(in_both), shape_bytes(in_both, in_vmem=False)) == (24 + 8 + 4, 8 + 4)


def test_collectives_are_found_inside_fusions_and_exposed_where_nothing_hides_them() -> None:
    gather, reduce = find_collectives(parse_hlo(PROGRAM), topology=V5E)
    assert (gather.kind, gather.bytes, gather.group_size, gather.overlapped) == ("all-gather", 64 * 128 * 4, 16, True)
    # v5e 4x4: two axes, no rings: 2 x 45 GB/s.
    assert gather.seconds == pytest.approx(64 * 128 * 4 * 15 / 16 / 90e9)
    assert gather.exposed_seconds == pytest.approx(gather.seconds - 7 / V5E.chip.clock)
    assert (reduce.kind, reduce.overlapped) == ("all-reduce", False)
    assert reduce.exposed_seconds == reduce.seconds == pytest.approx(2 * 2**21 * 15 / 16 / 90e9)


def entry(*lines: str) -> str:
    """Return a program of these instructions."""
    text = PROGRAM[: PROGRAM.index("ENTRY")] + "ENTRY %main.2 (p0: f32[8,128]) -> f32[8,128] {\n"
    return text + "".join(f"  {line}\n" for line in lines) + "}\n"


GATHERED = 64 * 128 * 4


@pytest.mark.parametrize(
    ("line", "kind", "moved"),
    [
        (f"%a = (f32[4,128], f32[64,128]) all-gather-start(%small), {SIXTEEN}", "all-gather", GATHERED),
        (f"%a = f32[64,128] all-reduce-start(%small), {SIXTEEN}", "all-reduce", GATHERED),
        (f"%a = f32[4,128] reduce-scatter(%small), {SIXTEEN}", "reduce-scatter", GATHERED),
        ("%a = (f32[4,128], f32[64,128]) async-start(%small), calls=%wrapped", "all-gather", GATHERED),
    ],
)
def test_bytes_are_those_of_the_whole_buffer(line: str, kind: str, moved: int) -> None:
    program = parse_hlo(entry("%small = f32[4,128] parameter(0)", line))
    (found,) = find_collectives(program, topology=V5E)
    assert (found.kind, found.bytes) == (kind, moved)


def test_the_same_work_hides_one_collective_only() -> None:
    def start(number: int) -> str:
        return f"%s{number} = (f32[4,128], f32[64,128]) all-gather-start(%small), {SIXTEEN}"

    seconds = GATHERED * 15 / 16 / 90e9
    work = f"%w = f32[8,128] fusion(%small), kind=kLoop, calls=%add, {CYCLES % round(seconds * V5E.chip.clock)}"
    done = ["%d1 = f32[64,128] all-gather-done(%s1)", "%d2 = f32[64,128] all-gather-done(%s2)"]
    program = parse_hlo(entry("%small = f32[4,128] parameter(0)", start(1), start(2), work, *done))
    first, second = find_collectives(program, topology=V5E)
    assert first.exposed_seconds == pytest.approx(0, abs=1e-9)
    assert second.exposed_seconds == pytest.approx(seconds, rel=1e-2)


def test_every_exposed_collective_says_what_limits_it_and_when_it_is_issued() -> None:
    seconds = GATHERED * 15 / 16 / 90e9

    def work(name: str, part: float) -> str:
        cycles = CYCLES % round(part * seconds * V5E.chip.clock)
        return f"%{name} = f32[8,128] fusion(%small), kind=kLoop, calls=%add, {cycles}"

    def start(number: int) -> str:
        return f"%s{number} = (f32[4,128], f32[64,128]) all-gather-start(%small), {SIXTEEN}"

    program = parse_hlo(
        entry(
            "%small = f32[4,128] parameter(0)",
            work("w0", 2),
            start(1),
            work("w1", 0.25),
            "%d1 = f32[64,128] all-gather-done(%s1)",
            start(2),
            start(3),
            work("w2", 1.1),
            "%d2 = f32[64,128] all-gather-done(%s2)",
            "%d3 = f32[64,128] all-gather-done(%s3)",
            f"%r = f32[64,128] all-reduce(%small), {SIXTEEN}",
        )
    )
    short, hidden, queued, alone = find_collectives(program, topology=V5E)
    assert (short.limit, hidden.limit, queued.limit, alone.limit) == (SHORT, "", QUEUED, SYNCHRONOUS)
    assert short.exposed_seconds == pytest.approx(0.75 * seconds, rel=1e-2)
    assert queued.exposed_seconds == pytest.approx(0.9 * seconds, rel=1e-2)
    assert [item.issued_seconds / seconds for item in (short, hidden, queued, alone)] == pytest.approx(
        [2, 3, 3, 5], rel=1e-2
    )


FUSED = f"""HloModule jit_step, is_scheduled=true

%started (p: bf16[4096,1024]) -> bf16[4096,1024] {{
  ROOT %all-reduce.1 = bf16[4096,1024]{{1,0}} all-reduce(%p), {SIXTEEN}, to_apply=%add
}}

%hiding (p.1: bf16[4096,1024], p.2: bf16[1024,512], p.3: bf16[512,256]) -> bf16[1024,256] {{
  %p.1 = bf16[4096,1024]{{1,0}} parameter(0)
  %p.2 = bf16[1024,512]{{1,0}} parameter(1)
  %p.3 = bf16[512,256]{{1,0}} parameter(2)
  %all-reduce.2 = bf16[4096,1024]{{1,0}} all-reduce(%p.1), {SIXTEEN}, to_apply=%add
  ROOT %convolution.1 = bf16[1024,256]{{1,0}} convolution(%p.2, %p.3), dim_labels=bf_io->bf
}}

ENTRY %main.1 (p0: bf16[4096,1024]) -> bf16[4096,1024] {{
  %p0 = bf16[4096,1024]{{1,0}} parameter(0)
  %async-collective-start.1 = (bf16[4096,1024], bf16[4096,1024]) fusion(%p0), kind=kCustom, calls=%started
  %gte.1 = bf16[4096,1024]{{1,0}} get-tuple-element(%async-collective-start.1), index=0
  %fusion.1 = (bf16[1024,256], bf16[4096,1024]) fusion(%gte.1, %p0, %p0), kind=kOutput, calls=%hiding{{estimate}}
  %gte.2 = bf16[4096,1024]{{1,0}} get-tuple-element(%fusion.1), index=1
  ROOT %async-collective-done.1 = bf16[4096,1024]{{1,0}} fusion(%gte.2), kind=kCustom, calls=%started
}}
"""


def test_a_matmul_that_the_compiler_does_not_count_is_counted_by_its_products() -> None:
    program = parse_hlo(FUSED.replace("{estimate}", ""))
    assert program.cycles() == 0
    found = uncounted_matmuls(program, chip=V5E.chip)
    products = 2 * 1024 * 512 * 256
    assert (found.fusions, found.total_cycles) == (1, products // V5E.chip.flops_per_cycle)
    (reduction,) = find_collectives(program, topology=V5E, own_cycles=found.cycles)
    assert reduction.fused
    # It hides as much of the reduction as its products take.
    hidden = reduction.seconds - reduction.exposed_seconds
    assert hidden == pytest.approx(found.total_cycles / V5E.chip.clock)
    assert reduction.exposed_seconds > 0
    counted = parse_hlo(FUSED.replace("{estimate}", ", " + CYCLES % 5000))
    assert uncounted_matmuls(counted, chip=V5E.chip).fusions == 0
    assert counted.cycles() == 5000


CALLED = 'custom_call_target="TODO", called_computations={%called}'
SPARSE = f"""HloModule jit_step, is_scheduled=true

%called (p: bf16[64,4096]) -> bf16[1024,4096] {{
  ROOT %all-gather.6 = bf16[1024,4096]{{1,0}} all-gather(%p), {SIXTEEN}, dimensions={{0}}
}}, execution_thread="sparsecore"

%async_computation (p.1: bf16[64,4096]) -> bf16[1024,4096] {{
  ROOT %custom-call = bf16[1024,4096]{{1,0}} custom-call(%p.1), {CALLED}
}}, execution_thread="sparsecore"

ENTRY %main.1 (p0: bf16[64,4096]) -> bf16[1024,4096] {{
  %p0 = bf16[64,4096]{{1,0}} parameter(0)
  %all-gather.3.call-start = ((), (), (s32[8192])) async-start(), calls=%async_computation
  %before.1 = bf16[8,128]{{1,0}} fusion(%p0), kind=kLoop, calls=%add, {CYCLES % 1000}
  %all-gather.3.call-update = ((bf16[64,4096]), bf16[1024,4096]) async-update(%all-gather.3.call-start, %p0)
  %hides.1 = bf16[8,128]{{1,0}} fusion(%p0), kind=kLoop, calls=%add, {CYCLES % 300}
  ROOT %all-gather.3.call-done = bf16[1024,4096]{{1,0}} async-done(%all-gather.3.call-update)
}}
"""


def test_a_collective_on_a_sparse_core_begins_when_it_gets_what_it_moves() -> None:
    topology = parse_topology("v6e:4x4")
    program = parse_hlo(SPARSE)
    (gather,) = find_collectives(program, topology=topology)
    assert (gather.kind, gather.bytes, gather.group_size, gather.overlapped) == ("all-gather", 2**23, 16, True)
    assert gather.issued_seconds == pytest.approx(1000 / topology.chip.clock)
    assert gather.exposed_seconds == pytest.approx(gather.seconds - 300 / topology.chip.clock)
    assert find_unestimated(program) == {}


def test_one_collective_behind_another_is_found() -> None:
    program = parse_hlo(
        entry(
            "%small = f32[4,128] parameter(0)",
            f"%r = f32[4,128] all-reduce(%small), {SIXTEEN}",
            "%g = f32[64,128] fusion(%r), kind=kCustom, calls=%wrapped",
        )
    )
    assert [item.kind for item in find_collectives(program, topology=V5E)] == ["all-reduce", "all-gather"]


def test_what_has_no_estimate_is_listed() -> None:
    assert find_unestimated(parse_hlo(PROGRAM)) == {"sort": 1, "loop of unknown length": 1}


def test_text_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="ENTRY"):
        parse_hlo("HloModule nothing\n")


@pytest.mark.parametrize(
    ("text", "bandwidth"),
    [
        ("v5e:4x4", 90e9),
        ("v5e:16x16", 180e9),
        ("v5e:4x16", 135e9),
        ("v5p:2x2x4", 270e9),
        ("v5p:4x4x4", 540e9),
        ("v6e:2x2", 180e9),
        ("tpu7x:2x2x1", 180e9),
        ("tpu7x:4x4x4", 540e9),
    ],
)
def test_an_axis_that_closes_to_a_ring_is_used_both_ways(text: str, bandwidth: float) -> None:
    topology = parse_topology(text)
    assert isinstance(topology, Topology)
    assert topology.collective_bandwidth(topology.num_devices) == bandwidth


def test_a_chip_of_two_devices_shares_its_values_among_them_but_not_its_links() -> None:
    topology = parse_topology("tpu7x:2x2x4")
    assert (topology.num_chips, topology.num_devices) == (16, 32)
    chip, device = topology.chip, topology.chip.device
    assert (2 * device.peak_flops, 2 * device.hbm_bytes) == (chip.peak_flops, chip.hbm_bytes)
    assert (device.clock, device.link_bandwidth) == (chip.clock, chip.link_bandwidth)
    assert peak_flops(chip.device_kind) == device.peak_flops  # what a run's MFU is relative to
    assert all(parse_topology(name).num_devices == 16 for name in ("v5e:4x4", "v5p:2x2x4", "v4:2x2x4"))


BETWEEN = (
    'is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="psum.1_0",'
    '_xla_megascale_target="{1,2,3,4}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}'
)
SLICES = f"""HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {{
  ROOT %sum = f32[] add(%a, %b)
}}

ENTRY %main.1 (p0: f32[8,128]) -> f32[8,128] {{
  %p0 = f32[8,128]{{1,0}} parameter(0)
  %after-all = token[] after-all()
  %send = (f32[1024,128]{{1,0}}, u32[], token[]) send(%p0, %after-all), channel_id=2, {BETWEEN}
  %recv = (f32[1024,128]{{1,0}}, u32[], token[]) recv(%after-all), channel_id=1, {BETWEEN}
  %all-reduce.1 = bf16[1024,1024]{{1,0}} all-reduce(%p0), channel_id=3, {SIXTEEN}, to_apply=%add
  %hides.1 = f32[8,128]{{1,0}} fusion(%p0), kind=kLoop, calls=%add, {CYCLES % 60000}
  %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %recv-done = (f32[1024,128]{{1,0}}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  ROOT %out = f32[8,128]{{1,0}} fusion(%p0), kind=kLoop, calls=%add, {CYCLES % 5}
}}
"""


def test_what_crosses_slices_is_priced_by_their_network_while_links_work() -> None:
    topology = parse_topology("4xv5e:4x4")
    assert (topology.num_chips, topology.name) == (64, "4xv5e:4x4")
    across, inside = find_collectives(parse_hlo(SLICES), topology=topology)
    assert (across.kind, across.group_size, across.bytes, across.overlapped) == ("all-reduce", 4, 1024 * 128 * 4, True)
    assert across.seconds == pytest.approx(across.bytes * 2 * 3 / 4 / 3.125e9)  # Google Cloud: 6.4 Tb/s for 256 chips
    assert (inside.network, inside.group_size, inside.overlapped) == ("links", 16, False)
    # It began before the reduction on the links, which the chip waited for, and the fusion hid a part of the rest.
    assert inside.exposed_seconds == pytest.approx(inside.seconds)
    hidden = inside.seconds + 60000 / topology.chip.clock
    assert across.exposed_seconds == pytest.approx(across.seconds - hidden)
    assert across.exposed_seconds > 0
