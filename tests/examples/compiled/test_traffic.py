"""Reading what a program moves, from texts as the compilers for TPU and GPU write them."""

import pytest

from compiled.traffic import Traffic, array_bytes, read_traffic

# A kernel of two inputs, with the layouts of a TPU's compiler.
FUSION = """HloModule jit_f, is_scheduled=true

%fused_computation (p0: f32[8,16], p1: f32[16]) -> f32[8,16] {
  %p0 = f32[8,16]{1,0} parameter(0)
  %p1 = f32[16]{0} parameter(1)
  %b = f32[8,16]{1,0} broadcast(%p1), dimensions={1}
  ROOT %add = f32[8,16]{1,0} add(%p0, %b)
}

ENTRY %main.5 (Arg_0.1: f32[8,16], Arg_1.2: f32[16]) -> (f32[8,16]) {
  %Arg_0.1 = f32[8,16]{1,0:T(8,128)} parameter(0)
  %Arg_1.2 = f32[16]{0:T(128)} parameter(1)
  %fusion = f32[8,16]{1,0:T(8,128)} fusion(%Arg_0.1, %Arg_1.2), kind=kLoop, calls=%fused_computation
  ROOT %tuple = (f32[8,16]{1,0:T(8,128)}) tuple(%fusion)
}
"""

LOOP = """HloModule jit_g

%body (t: (s32[], f32[64])) -> (s32[], f32[64]) {
  %t = (s32[], f32[64]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[64]{0} get-tuple-element(%t), index=1
  %y = f32[64]{0} fusion(%x), kind=kLoop, calls=%f
  ROOT %out = (s32[], f32[64]{0}) tuple(%i, %y)
}

%cond (t: (s32[], f32[64])) -> pred[] {
  %t = (s32[], f32[64]{0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (x: f32[64]) -> f32[64] {
  %x = f32[64]{0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[64]{0}) tuple(%zero, %x)
  %w = (s32[], f32[64]{0}) while(%start), condition=%cond, body=%body, TRIPS
  ROOT %r = f32[64]{0} get-tuple-element(%w), index=1
}
"""


def test_a_kernel_reads_its_operands_and_writes_its_result():
    read, vector, written = 8 * 16 * 4, 16 * 4, 8 * 16 * 4
    assert read_traffic(FUSION) == Traffic(bytes=read + vector + written, kernels=1)


SLICES = """
%fused (p0: f32[100,64], p1: f32[64], p2: f32[100,64], i: s32[]) -> (f32[1,64], f32[1,64]) {
  %p0 = f32[100,64]{1,0} parameter(0)
  %p1 = f32[64]{0} parameter(1)
  %p2 = f32[100,64]{1,0} parameter(2)
  %i = s32[] parameter(3)
  %zero = s32[] constant(0)
  %d = f32[1,64]{1,0} dynamic-slice(%p0, %i, %zero), dynamic_slice_sizes={1,64}
  %b = f32[100,64]{1,0} broadcast(%p1), dimensions={1}
  %a = f32[100,64]{1,0} add(%p2, %b)
  %s = f32[1,64]{1,0} slice(%a), slice={[3:4], [0:64]}
  ROOT %t = (f32[1,64]{1,0}, f32[1,64]{1,0}) tuple(%d, %s)
}

ENTRY %main (x: f32[100,64], y: f32[64], z: f32[100,64], i: s32[]) -> (f32[1,64], f32[1,64]) {
  %x = f32[100,64]{1,0} parameter(0)
  %y = f32[64]{0} parameter(1)
  %z = f32[100,64]{1,0} parameter(2)
  %i = s32[] parameter(3)
  ROOT %f = (f32[1,64]{1,0}, f32[1,64]{1,0}) fusion(%x, %y, %z, %i), kind=kLoop, calls=%fused
}
"""


def test_of_an_operand_the_slices_count_that_are_read():
    row = 64 * 4
    index = 4
    assert read_traffic(SLICES) == Traffic(bytes=5 * row + index, kernels=1)
    whole = SLICES.replace("tuple(%d, %s)", "tuple(%d, %a)")
    assert read_traffic(whole).bytes - read_traffic(SLICES).bytes == 99 * row


UPDATED = """
%fused (p0: f32[100,64], p1: f32[1,64], i: s32[]) -> (f32[100,64], f32[1,64]) {
  %p0 = f32[100,64]{1,0} parameter(0)
  %p1 = f32[1,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %n = f32[1,64]{1,0} negate(%p1)
  %u = f32[100,64]{1,0} dynamic-update-slice(%p0, %n, %i, %zero)
  ROOT %t = (f32[100,64]{1,0}, f32[1,64]{1,0}) tuple(%u, %n)
}

ENTRY %main (x: f32[100,64], y: f32[1,64], i: s32[]) -> (f32[100,64], f32[1,64]) {
  %x = f32[100,64]{1,0} parameter(0)
  %y = f32[1,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %f = (f32[100,64]{1,0}, f32[1,64]{1,0}) fusion(%x, %y, %i), kind=kLoop, calls=%fused
}
"""


def test_of_an_array_that_is_updated_in_place_the_slice_counts():
    row, index = 64 * 4, 4
    assert read_traffic(UPDATED) == Traffic(bytes=row + index + 2 * row, kernels=1)
    copied = UPDATED.replace(
        "%u = f32[100,64]{1,0} dynamic-update-slice(%p0, %n, %i, %zero)",
        "%d = f32[100,64]{1,0} dynamic-update-slice(%p0, %n, %i, %zero)\n"
        "  %u = f32[100,64]{1,0} exponential(%d)",
    )
    assert read_traffic(copied).bytes > 2 * 100 * row  # All of it is read, and written anew.


def test_an_update_without_a_fusion_reads_and_writes_its_slice():
    text = """
ENTRY %main (x: f32[100,64], y: f32[1,64], i: s32[]) -> f32[100,64] {
  %x = f32[100,64]{1,0} parameter(0)
  %y = f32[1,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %u = f32[100,64]{1,0} dynamic-update-slice(%x, %y, %i, %i)
}
"""
    row, index = 64 * 4, 4
    assert read_traffic(text) == Traffic(bytes=2 * row + 2 * index, kernels=1)


SCATTER = """
%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%fused (p0: f32[100,64], p1: s32[7,1], p2: f32[7,64]) -> f32[100,64] {
  %p0 = f32[100,64]{1,0} parameter(0)
  %p1 = s32[7,1]{1,0} parameter(1)
  %p2 = f32[7,64]{1,0} parameter(2)
  ROOT %u = f32[100,64]{1,0} scatter(%p0, %p1, %p2), to_apply=%sum
}

ENTRY %main (x: f32[100,64], i: s32[7,1], y: f32[7,64]) -> f32[100,64] {
  %x = f32[100,64]{1,0} parameter(0)
  %i = s32[7,1]{1,0} parameter(1)
  %y = f32[7,64]{1,0} parameter(2)
  ROOT %f = f32[100,64]{1,0} fusion(%x, %i, %y), kind=kInput, calls=%fused
}
"""


def test_a_scatter_reads_and_writes_where_it_adds():
    rows, indices = 7 * 64 * 4, 7 * 4
    assert read_traffic(SCATTER) == Traffic(bytes=3 * rows + indices, kernels=1)
    alone = SCATTER.replace("fusion(%x, %i, %y), kind=kInput, calls=%fused", "scatter(%x, %i, %y)")
    assert read_traffic(alone) == read_traffic(SCATTER)
    two = alone.replace(
        "ROOT %f = f32[100,64]{1,0} scatter(%x, %i, %y)",
        "ROOT %f = (f32[100,64]{1,0}, f32[100,64]{1,0}) scatter(%x, %x, %i, %y, %y)",
    )
    assert read_traffic(two).bytes == 4 * 100 * 64 * 4 + indices + 2 * rows  # All of it.


def test_a_loop_counts_times_its_trips():
    text = LOOP.replace("TRIPS", 'backend_config={"known_trip_count":{"n":"100"}}')
    assert read_traffic(text) == Traffic(bytes=100 * 2 * 64 * 4, kernels=100)


def test_a_loop_that_runs_while_a_counter_is_below_a_number_counts_so_often():
    condition = """%t = (s32[], f32[64]{0}) parameter(0)
  %n = s32[] constant(100)
  %i = s32[] get-tuple-element(%t), index=0
  ROOT %less = pred[] compare(%i, %n), direction=LT"""
    text = LOOP.replace(", TRIPS", "").replace(
        """%t = (s32[], f32[64]{0}) parameter(0)
  ROOT %less = pred[] constant(true)""",
        condition,
    )
    assert read_traffic(text) == Traffic(bytes=100 * 2 * 64 * 4, kernels=100)
    of_data = text.replace("%n = s32[] constant(100)", "%n = s32[] get-tuple-element(%t), index=0")
    assert read_traffic(of_data).loops_without_count == 1


def test_a_loop_that_does_not_state_its_trips_counts_once_and_is_reported():
    text = LOOP.replace(", TRIPS", "")
    assert read_traffic(text) == Traffic(bytes=2 * 64 * 4, kernels=1, loops_without_count=1)


def test_vector_memory_of_a_tpu_does_not_count():
    near = FUSION.replace("f32[16]{0:T(128)} parameter", "f32[16]{0:T(128)S(1)} parameter")
    assert read_traffic(FUSION).bytes - read_traffic(near).bytes == 16 * 4


def test_a_prefetch_into_vector_memory_moves_its_slice_once():
    text = """
ENTRY %main (x: f32[8,16]) -> f32[2,16] {
  %x = f32[8,16]{1,0} parameter(0)
  %start = ((f32[8,16]{1,0}), f32[2,16]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:2]}
  %done = f32[2,16]{1,0:S(1)} slice-done(%start)
  ROOT %r = f32[2,16]{1,0} fusion(%done), kind=kLoop, calls=%f
}
"""
    piece = 2 * 16 * 4
    assert read_traffic(text) == Traffic(bytes=2 * piece, kernels=2)
    copied = (
        text.replace(
            "((f32[8,16]{1,0}), f32[2,16]{1,0:S(1)}, s32[]{:S(2)}) slice-start",
            ("(f32[8,16]{1,0}, f32[8,16]{1,0}, u32[]{:S(2)}) copy-start"),
        )
        .replace("slice-done", "copy-done")
        .replace("f32[2,16]{1,0:S(1)} copy", "f32[8,16]{1,0} copy")
    )
    whole = 8 * 16 * 4
    assert read_traffic(copied) == Traffic(bytes=2 * whole + whole + piece, kernels=2)


def test_a_kernel_that_runs_beside_others_counts_as_if_it_ran_alone():
    kind = "(f32[1,64]{1,0}, f32[1,64]{1,0})"
    operands = "(f32[100,64]{1,0}, f32[64]{0}, f32[100,64]{1,0}, s32[])"
    beside = SLICES.replace(
        f"ROOT %f = {kind} fusion(",
        f"%start = ({operands}, {kind}, u32[]) fusion-start(",
    ).replace("calls=%fused\n", f"calls=%fused\n  ROOT %done = {kind} fusion-done(%start)\n")
    assert "fusion-done" in beside
    assert read_traffic(beside) == read_traffic(SLICES)


def test_of_a_conditional_the_dearest_branch_counts():
    text = """
%small (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %a = f32[4]{0} negate(%p)
}

%large (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %a = f32[4]{0} negate(%p)
  ROOT %b = f32[4]{0} exponential(%a)
}

ENTRY %main (i: s32[], x: f32[4]) -> f32[4] {
  %i = s32[] parameter(0)
  %x = f32[4]{0} parameter(1)
  ROOT %c = f32[4]{0} conditional(%i, %x, %x), branch_computations={%small, %large}
}
"""
    assert read_traffic(text) == Traffic(bytes=2 * 2 * 16, kernels=2)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[]", 4),
        ("bf16[3,5]{1,0}", 30),
        ("pred[7]{0}", 7),
        ("(f32[2]{0}, s8[3]{0}, f32[4]{0:T(128)S(1)})", 11),
        ("f8e4m3fn[8]{0}", 8),
        ("u64[2]", 16),
    ],
)
def test_sizes_of_types_and_tuples(shape, size):
    assert array_bytes(shape) == size


def test_a_text_that_is_no_program_is_an_error():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        read_traffic("HloModule empty")
