"""Compile every kernel for GPUs that are not available, for ``test_kernels``.

Run as ``python tests/support/compiled.py``; prints kernel, capability and bytes of shared memory,
one line each.  It runs in a separate process, because Triton cannot leave its interpreter.
"""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipeline.kernels import gather_triton, head_triton, pixels_triton, windows_triton

CAPABILITIES = (80, 90)
WINDOWS = {"T": 16, "N": 13, "W": 4, "STRIDE": 1, "D": 512, "SIZE": 64}
WINDOWS |= {"SIZE_TILE": 64, "M": 16, "F": 16}
HEAD = {"T": 16, "K": 7, "D": 512, "T_TILE": 16, "K_TILE": 16, "D_TILE": 64}
GATHER = {"SIZE": 16 * 512, "D": 512, "BLOCK": 1024}
PIXELS = {
    "buffer_ptr": "*u8",
    "sources_ptr": "*i64",
    "places_ptr": "*fp64",
    "offset_ptr": "*i64",
    "levels_ptr": "*u8",
}
PIXELS |= {
    "sums_ptr": "*i32",
    "row_start_ptr": "*i32",
    "column_start_ptr": "*i32",
    "out_ptr": "*bf16",
}
# (kernel, its constants, types of pointers that are not float32, options)
KERNELS = [
    (windows_triton._forward, WINDOWS, {}, {}),
    (windows_triton._backward, WINDOWS, {}, {"num_stages": 1}),
    (head_triton._logits_forward, HEAD, {"temperature_ptr": "*fp64"}, {}),
    (head_triton._logits_backward, HEAD, {"temperature_ptr": "*fp64"}, {}),
    (head_triton._prompt_forward, HEAD, {"temperature_ptr": "*fp64"}, {}),
    (head_triton._prompt_backward, HEAD, {"temperature_ptr": "*fp64"}, {}),
    (
        gather_triton._gather,
        GATHER,
        {"features_ptr": "*fp16", "video_ptr": "*i64", "view_ptr": "*i64"},
        {},
    ),
    (pixels_triton._warp, {"STEPS": 32, "BLOCK": 512}, PIXELS, {"enable_fp_fusion": False}),
    (
        pixels_triton._colour,
        {"PARTS": 1024, "BLOCKS_TILE": 128, "BLOCK": 512},
        {**PIXELS, "matrix_ptr": "*i32", "grey_ptr": "*fp64", "offset_ptr": "*fp32"},
        {},
    ),
    (pixels_triton._resize, {"BLOCK": 512}, PIXELS, {}),
]


def main() -> None:
    """Compile at ViT-B/32's sizes, down to the machine code."""
    for kernel, constants, types, options in KERNELS:
        signature = {
            name: "constexpr"
            if name in constants
            else types.get(name, "*fp32" if name.endswith("_ptr") else "i32")
            for name in kernel.arg_names
        }
        for capability in CAPABILITIES:
            source = ASTSource(kernel, signature, constants)
            target = GPUTarget("cuda", capability, 32)
            compiled = triton.compile(source, target=target, options=options)
            assert compiled.asm["cubin"]
            print(kernel.__name__, capability, compiled.metadata.shared)


if __name__ == "__main__":
    main()
