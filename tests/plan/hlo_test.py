"""What is read from the text of a compiled program."""

import pytest

from litevit_jax.plan import hlo

TEXT = """\
HloModule jit_f, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias), \
{1, 0}: (2, {}, must-alias) }, entry_computation_layout={()->f32[]}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%scattered (p: f32[64]) -> f32[64] {
  %p = f32[64]{0} parameter(0)
  ROOT %inner = f32[64]{0} all-reduce(%p), replica_groups=[2,4]<=[8], to_apply=%sum
}

%body (t: (s32[], f32[128])) -> (s32[], f32[128]) {
  %t = (s32[], f32[128]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[128]{0} get-tuple-element(%t), index=1
  %moved = f32[128]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}, \
backend_config={"estimated_cycles":"7"}
  ROOT %next = (s32[], f32[128]{0}) tuple(%i, %moved)
}

%condition (t.1: (s32[], f32[128])) -> pred[] {
  %t.1 = (s32[], f32[128]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

%rare (r: f32[16]) -> f32[16] {
  %r = f32[16]{0} parameter(0)
  ROOT %seldom = f32[16]{0} all-reduce(%r), replica_groups={{0,1,2,3}}, to_apply=%sum, \
backend_config={"estimated_cycles":"1000"}
}

%never (r.1: f32[16]) -> f32[16] {
  ROOT %r.1 = f32[16]{0} parameter(0)
}

ENTRY %main (q: f32[10], w: bf16[6,100], e: s32[]) -> f32[10] {
  %q = f32[10]{0:T(128)} parameter(0)
  %w = bf16[6,100]{1,0:T(8,128)(2,1)} parameter(1)
  %e = s32[] parameter(2)
  %near = bf16[6,100]{1,0:T(8,128)(2,1)S(1)} copy(%w)
  %part = ((bf16[6,100]{1,0:T(8,128)(2,1)}), bf16[2,100]{1,0:T(8,128)(2,1)S(1)}, \
s32[]{:S(2)}) slice-start(%w), slice={[0:2], [0:100]}
  %taken = bf16[2,100]{1,0:T(8,128)(2,1)S(1)} slice-done(%part)
  %two = (f32[10]{0}, /*index=1*/f32[5,2]{1,0}) all-reduce(%q, %odd), \
replica_groups=mesh['x'=4,'y'=2] {'x', 'y':(1)2}, to_apply=%sum
  %odd = f32[5,2]{1,0} custom-call(), custom_call_target="f"
  %go = (f32[10]{0}, f32[40]{0}) all-gather-start(%q), replica_groups=[1,4]<=[4]
  %all = f32[40]{0} all-gather-done(%go)
  %alone = f32[10]{0} all-reduce(%q), replica_groups=[8,1]<=[8], to_apply=%sum, \
backend_config={"window_config":{"n":["1"]},"estimated_cycles":"100"}
  %fused = f32[64]{0} fusion(%odd), kind=kCustom, calls=%scattered
  %loop = (s32[], f32[128]{0}) while(%start), condition=%condition, body=%body
  %choice = f32[16]{0} conditional(%e, %q, %q), branch_computations={%rare, %never}
  ROOT %out = f32[10]{0} copy(%q)
}
"""


@pytest.fixture(scope="module")
def module():
    return hlo.Module(TEXT, trips=9)


def test_collectives_of_a_step_are_counted_through_loops_and_fusions(module):
    kinds = module.collectives()
    # Of a tuple, and inside a fusion; not with itself alone, nor at some steps only.
    assert (kinds["all-reduce"].count, kinds["all-reduce"].bytes) == (2, 80 + 256)
    assert kinds["all-reduce"].wire_bytes == 2 * 7 / 8 * 80 + 2 * 3 / 4 * 256
    gathered = kinds["all-gather"]
    assert (gathered.count, gathered.bytes, gathered.wire_bytes) == (1, 160, 120)
    moved = kinds["collective-permute"]  # five times around
    assert (moved.count, moved.bytes, moved.wire_bytes) == (5, 5 * 512, 5 * 512)
    assert len(kinds) == 3


def test_those_of_a_branch_are_told_apart(module):
    kinds = module.collectives(sometimes=True)
    assert kinds.keys() == {"all-reduce"}
    assert (kinds["all-reduce"].count, kinds["all-reduce"].bytes) == (1, 64)


@pytest.mark.parametrize(
    ("recorded", "limit", "expected"),
    [
        ('backend_config={"known_trip_count":{"n":"3"}}', "s32[] add(%i.1)", 3),
        ("", "s32[] add(%i.1)", 9),
        ("", "pred[2]{0} constant({false, true})", 9),
    ],
    ids=["recorded", "not recorded", "no number"],
)
def test_trips_of_a_loop_are_those_recorded_else_those_given(recorded, limit, expected):
    text = TEXT.replace("%limit = s32[] constant(5)", f"%limit = {limit}")
    text = text.replace("body=%body", f"body=%body, {recorded}")
    moved = hlo.Module(text, trips=9).collectives()["collective-permute"]
    assert moved.count == expected


def test_memory_traffic_counts_tiles_and_leaves_faster_memories_out(module):
    tile, row = 8 * 128 * 2, 128 * 4  # of w and of q, as they are laid out
    expected = {
        "near": tile,  # read; what is written is in the faster memory
        "part": tile,  # two rows fill a tile; the others are not read
        "two": 40 + 40 + row + 40,
        "odd": 40,
        "go": 40 + 160 + row,
        "alone": 40 + row,
        "fused": 256 + 40,
        "loop": 5 * (512 + 512),
        "out": 40 + row,
    }
    assert module.memory_traffic() == sum(expected.values())


def test_the_workspace_of_a_matrix_library_is_no_traffic():
    text = """HloModule gpu

ENTRY %main (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %dot = (f32[8,8]{1,0}, s8[33554432]{0}) custom-call(%a, %a), custom_call_target="__cublas$gemm"
  ROOT %result = f32[8,8]{1,0} get-tuple-element(%dot), index=0
}
"""  # noqa: E501
    assert hlo.Module(text).memory_traffic() == 2 * 8 * 8 * 4  # a is read once


def test_cycles_are_those_of_every_step_through_loops(module):
    assert module.cycles() == 100 + 5 * 7


def test_results_in_the_place_of_arguments_are_counted():
    assert hlo.aliased_outputs(TEXT) == 2
    assert hlo.aliased_outputs("HloModule f, entry_computation_layout={()->f32[]}") == 0
