"""FLOPs of matrix products in compiled programs, against counts by hand."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from paxlike.accounting.hlo_matmuls import _overlaps, count_matmuls


def compiled(function, *arguments) -> str:
    return jax.jit(function).lower(*arguments).compile().as_text()


def program(*instructions: str) -> str:
    """Returns HLO text with one computation. `instructions` include the parameters."""
    return (
        "HloModule m\n\nENTRY %main (p: f32[]) -> f32[] {\n  " + "\n  ".join(instructions) + "\n}\n"
    )


@pytest.mark.parametrize(
    ("einsum", "a", "b", "flops"),
    [
        ("btd,df->btf", (4, 32, 64), (64, 128), 2 * 4 * 32 * 64 * 128),
        ("btnh,bsnh->bnts", (2, 16, 4, 8), (2, 16, 4, 8), 2 * 2 * 4 * 16 * 16 * 8),
        ("btd,btf->df", (4, 32, 64), (4, 32, 128), 2 * 4 * 32 * 64 * 128),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_products(einsum, a, b, flops, dtype):
    text = compiled(lambda x, y: jnp.einsum(einsum, x, y), jnp.ones(a, dtype), jnp.ones(b, dtype))
    counted = count_matmuls(text)
    assert counted.total == flops
    assert counted.uncounted == () == counted.unknown_loops


def test_rematerialized_scan_counts_every_execution():
    """Each of 6 layers has 4 products of 2 x 16 x 32 x 32 FLOPs: forward, recomputed forward, and
    two backward. Without rematerialization, it has 3.
    """

    def loss(remat, ws, x):
        def block(x, w):
            return jnp.tanh(jnp.sin(x) @ w), None

        return jax.lax.scan(jax.checkpoint(block) if remat else block, x, ws)[0].sum()

    arguments = jnp.ones((6, 32, 32)), jnp.ones((16, 32))
    for remat, products in ((False, 3), (True, 4)):
        counted = count_matmuls(compiled(jax.grad(lambda *a, r=remat: loss(r, *a)), *arguments))
        # The last layer's product is needed for its tanh, so no product can be removed.
        assert counted.total == products * 6 * 2 * 16 * 32 * 32
        assert all(m.in_loop and m.times == 6 and m.kind == "dot" for m in counted.found)


@pytest.mark.parametrize(
    ("instruction", "lhs", "kernel", "flops"),
    [
        # Dots as libtpu compiles them: a plain one, one with batch dimensions as dilated space, and
        # one with heads as padded space.
        (
            "bf16[2,1024,512]{2,1,0:T(8,128)} convolution(%lhs, %kernel), window={size=1}, "
            "dim_labels=0bf_io0->0bf",
            (2, 1024, 512), (512, 512, 1), 2 * 2 * 1024 * 512 * 512,
        ),
        (
            "bf16[2,2,1024,1024]{2,3,1,0} convolution(%lhs, %kernel), "
            "window={size=2x2 lhs_dilate=2x2}, dim_labels=0b1f_0o1i->01bf",
            (2, 1024, 2, 128), (2, 1024, 2, 128), 2 * 2 * 2 * 1024 * 1024 * 128,
        ),
        (
            "bf16[2,1024,8,128]{3,1,2,0} convolution(%lhs, %kernel), "
            "window={size=1x8 pad=0_0x7_7 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f",
            (2, 1024, 2048, 1), (8, 128, 2048, 1), 2 * 2 * 1024 * 2048 * 8 * 128,
        ),
        (
            "f32[16000,2048]{1,0} convolution(%lhs, %kernel), dim_labels=fb_io->bf",
            (4096, 16000), (4096, 2048), 2 * 16000 * 2048 * 4096,
        ),
        (
            "f32[1,5,7]{2,1,0} convolution(%lhs, %kernel), window={size=3 pad=1_1}, "
            "dim_labels=b0f_0io->b0f",
            (1, 5, 4), (3, 4, 7), 2 * (5 * 3 - 2) * 4 * 7,
        ),
    ],
)  # fmt: skip
def test_convolutions_count_only_overlaps_of_window_and_data(instruction, lhs, kernel, flops):
    shapes = {"lhs": lhs, "kernel": kernel}
    parameters = (
        f"%{name} = f32[{','.join(map(str, shape))}] parameter({i})"
        for i, (name, shape) in enumerate(shapes.items())
    )
    counted = count_matmuls(
        program(*parameters, f'ROOT %convolution.1 = {instruction}, metadata={{op_name="x"}}')
    )
    assert counted.total == flops and counted.found[0].kind == "convolution"


def test_window_positions_against_enumeration():
    for outputs, stride, offset, data, dilate in itertools.product(
        (1, 4, 9), (1, 2, 3), range(-7, 8), (1, 3, 5), (1, 2, 4)
    ):
        places = {i * dilate for i in range(data)}
        expected = sum(stride * o + offset in places for o in range(outputs))
        assert _overlaps(outputs, stride, offset, data, dilate) == expected


def flops_of_kind(kind: str, text: str) -> int:
    return sum(m.flops * m.times for m in count_matmuls(text).found if m.kind == kind)


def test_cublas_calls():
    text = program(
        "%lhs = bf16[768,2304]{1,0} parameter(0)",
        "%rhs = bf16[8192,768]{1,0} parameter(1)",
        "ROOT %matmul = (bf16[2304,8192]{0,1}, s8[4194304]{0}) custom-call(%lhs, %rhs), "
        'custom_call_target="__cublas$lt$matmul", backend_config={"operation_queue_id":"0",'
        '"gemm_backend_config":{"alpha_real":1,"beta":0,"dot_dimension_numbers":{'
        '"lhs_contracting_dimensions":["0"],"rhs_contracting_dimensions":["1"],'
        '"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]},"epilogue":"DEFAULT"}}',
    )
    assert flops_of_kind("cublas", text) == count_matmuls(text).total == 2 * 2304 * 8192 * 768


def test_cudnn_flash_attention():
    qkv = [f"%{name} = bf16[2,1024,6,64]{{3,2,1,0}} parameter({i})" for i, name in enumerate("qkv")]
    dimensions = '"dimensions":["2","6","1024","1024"]'
    shape = f'{{"element_type":"BF16",{dimensions},"tuple_shapes":[]}}'
    config = f'{{"fmha_scale":1,"intermediate_tensor_shape":{shape},"mask_type":"CAUSAL"}}'
    backend = f'backend_config={{"cudnn_fmha_backend_config":{config}}}'
    forward = f'custom_call_target="__cudnn$fmhaSoftmax", {backend}'
    backward = f'custom_call_target="__cudnn$fmhaSoftmaxBackward", {backend}'
    product = 2 * 2 * 6 * 1024 * 1024 * 64
    for call, products in ((forward, 2), (backward, 5)):
        text = program(
            *qkv,
            "ROOT %fmha = (bf16[2,6,1024,64]{3,2,1,0}, u8[0]{0}) custom-call(%q, %k, %v), " + call,
        )
        assert flops_of_kind("attention kernel", text) == products * product


@pytest.mark.parametrize(
    ("kernel", "products"),
    [
        ("mha_fwd_residuals", 2),
        ("mha_fwd_segmented_no_residuals", 2),
        ("mqa_dq_no_residuals", 3),
        ("mha_dkv_no_residuals", 4),
    ],
)
def test_splash_attention(kernel, products):
    name = f"splash_{kernel}"
    text = program(
        "%mask = s8[1,8,8]{2,1,0} parameter(0)",
        "%q = bf16[2,4,1024,128]{3,2,1,0} parameter(1)",
        "%k = bf16[2,1,2048,128]{3,2,1,0} parameter(2)",
        f"ROOT %{name}.1 = (f32[2,128,128]{{2,1,0}}, bf16[2,4,1024,128]{{3,2,1,0}}) "
        'custom-call(%mask, %mask, %q, %k, %k), custom_call_target="tpu_custom_call", '
        f'metadata={{op_name="jit(step)/{name}/{name}/pallas_call"}}',
    )
    assert flops_of_kind("attention kernel", text) == products * 2 * 2 * 4 * 1024 * 2048 * 128


@pytest.mark.parametrize(
    ("name", "out", "second"),
    [
        ("ragged-dot-none.1", "bf16[2048,96]{1,0}", "bf16[8,64,96]{2,1,0}"),
        ("tgmm.2", "f32[8,64,96]{2,1,0}", "bf16[2048,96]{1,0}"),
        ("ragged-dot-metadata.1", "s32[9]{0}", "s32[8]{0}"),
    ],
)
def test_kernels_of_grouped_products_read_each_row_once(name, out, second):
    text = program(
        "%sizes = s32[9]{0} parameter(0)",
        "%rows = bf16[2048,64]{1,0} parameter(1)",
        f"%second = {second} parameter(2)",
        f"ROOT %{name} = {out} custom-call(%sizes, %sizes, %rows, %second), "
        'custom_call_target="tpu_custom_call"',
    )
    expected = 0 if "metadata" in name else 2 * 2048 * 64 * 96
    assert flops_of_kind("grouped", text) == expected and not count_matmuls(text).uncounted


def test_unknown_kernels_are_listed_but_not_other_calls():
    text = program(
        "%x = f32[8,8]{1,0} parameter(0)",
        '%a = f32[8,8]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", '
        'metadata={op_name="my_kernel/pallas_call"}',
        '%b = f32[8,8]{1,0} custom-call(%x, %x), custom_call_target="__onednn$matmul"',
        # This call lacks the config.
        '%c = f32[8,8]{1,0} custom-call(%x, %x), custom_call_target="__cublas$gemm"',
        '%d = f32[8,8]{1,0} custom-call(), custom_call_target="AllocateBuffer"',
        'ROOT %e = f32[8,8]{1,0} custom-call(%x), custom_call_target="TopK"',
    )
    counted = count_matmuls(text)
    assert counted.total == 0
    assert counted.uncounted == (
        "tpu_custom_call (1 times)",
        "__onednn$matmul (1 times)",
        "__cublas$gemm (1 times)",
    )


def test_operands_with_shapes_or_without_percent_sign():
    for x, y in (("f32[4,8]{1,0} %x", "f32[8,2]{1,0} %y"), ("x", "y")):
        text = program(
            "%x = f32[4,8]{1,0} parameter(0)",
            "y = f32[8,2]{1,0} parameter(1)",
            f"ROOT %dot = f32[4,2]{{1,0}} dot({x}, {y}), lhs_contracting_dims={{1}}, "
            "rhs_contracting_dims={0}",
        )
        assert count_matmuls(text).total == 2 * 4 * 2 * 8
