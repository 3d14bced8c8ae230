"""Compile every kernel for GPUs that are not available, for ``test_kernels``.

Run as ``python tests/support/compiled.py``; prints kernel, capability and bytes of shared memory,
one line each.  It runs in a separate process, because Triton cannot leave its interpreter.
"""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipeline.kernels import gather_triton, head_triton, windows_triton

CAPABILITIES = (80, 90)
WINDOWS = {"T": 16, "N": 13, "W": 4, "STRIDE": 1, "D": 512, "SIZE": 64}
WINDOWS |= {"SIZE_TILE": 64, "M": 16, "F": 16}
HEAD = {"T": 16, "K": 7, "D": 512, "T_TILE": 16, "K_TILE": 16, "D_TILE": 64}
GATHER = {"SIZE": 16 * 512, "D": 512, "BLOCK": 1024}
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
