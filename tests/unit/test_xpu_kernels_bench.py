"""Portable kernels are taken out of a wheel, on containers built here after their formats; nothing is compiled."""

import json
import struct
import zipfile
from pathlib import Path

import pytest

from bench import xpu_kernels


def spirv(*names: str) -> bytes:
    """Return a module with nothing but its header and its entry points."""
    words = [0x07230203, 0x10400, 0, 100, 0]
    for name in names:
        text = name.encode() + b"\0"
        text += b"\0" * (-len(text) % 4)
        body = [6, 1, *struct.unpack(f"<{len(text) // 4}I", text)]
        words += [(len(body) + 1) << 16 | xpu_kernels.ENTRY_POINT, *body]
    return struct.pack(f"<{len(words)}I", *words)


def container(code: bytes, options: bytes = b"") -> bytes:
    """Return an ELF with a section of SPIR-V and one of the compiler's options."""
    parts = [(xpu_kernels.SPIRV_SECTION, code)] + ([(0xFF000006, options + b"\0")] if options else [])
    body, table = b"", struct.pack("<IIQQQQIIQQ", *([0] * 10))
    for kind, content in parts:
        table += struct.pack("<IIQQQQIIQQ", 0, kind, 0, 0, 64 + len(body), len(content), 0, 0, 1, 0)
        body += content
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        0xFF02,
        0,
        1,
        0,
        0,
        64 + len(body),
        0,
        64,
        0,
        0,
        64,
        len(parts) + 1,
        0,
    )
    return header + body + table


def archive(**members: bytes) -> bytes:
    """Return an archive as the compiler writes one for several targets."""
    content = xpu_kernels.ARCHIVE
    for name, part in members.items():
        content += (
            f"{name + '/':<16}{0:<12}{0:<6}{0:<6}{0:<8}{len(part):<10}`\n".encode() + part + b"\n" * (len(part) % 2)
        )
    return content


def wheel(path: Path, **libraries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in libraries.items():
            packed.writestr(f"vllm_xpu_kernels/{name}.abi3.so", content)
        packed.writestr("vllm_xpu_kernels/__init__.py", "")
    return path


def test_every_portable_module_is_found_with_its_kernels_and_options(tmp_path: Path) -> None:
    first = container(spirv("_ZTSsilu", "_ZTSrms"), b"-ze-intel-enable")
    content = (
        b"code" + archive(machine=b"\x7fELF..", generic_ir=first) + b"between" + archive(generic_ir=container(spirv()))
    )
    found = list(xpu_kernels.modules(wheel(tmp_path / "w.whl", _C=content, _moe_C=b"nothing in it")))
    assert [(each.library, each.index, each.entries, each.options) for each in found] == [
        ("_C", 0, ("_ZTSsilu", "_ZTSrms"), "-ze-intel-enable"),
        ("_C", 1, (), ""),
    ]
    assert found[0].code.startswith(xpu_kernels.SPIRV_MAGIC)
    assert not list(xpu_kernels.modules(tmp_path / "w.whl", ["_xpu_C"]))


@pytest.mark.parametrize("content", [b"PK\x03\x04", container(b"")])
def test_a_container_without_spirv_is_an_error(content: bytes) -> None:
    with pytest.raises(ValueError, match="SPIR-V"):
        xpu_kernels.spirv_of(content)


def test_the_reason_is_the_compilers_own_sentence() -> None:
    kernel = "'typeinfo name for TopkToppSamplerImpl::top_p_only_kernel<3>'"
    text = (
        f"Compilation from IR\nerror: in kernel {kernel}: Double type is not supported on this platform.\nBuild failed"
    )
    assert xpu_kernels.reason_of(text) == "Double type is not supported on this platform."
    assert xpu_kernels.reason_of("Build failed with error code: -11\nCommand was: ocloc ...") == (
        "Build failed with error code: -11"
    )


@pytest.mark.parametrize(
    ("library", "entry", "needed"),
    [
        ("_C", "_ZTSN4vllm12rms_norm", "yes"),
        ("_xpu_C", "_ZTSint4_gemm_w4a16", "yes"),
        ("_moe_C", "_ZTStopk_softmax", "a mixture's experts"),
        ("libgrouped_gemm_xe_default", "_ZTSGemm", "a mixture's experts"),
        ("_xpu_C", "_ZTSN19TopkToppSamplerImpl17top_p_only_kernelE", "sampling by top-p and top-k; greedy needs none"),
        ("_xpu_C", "_ZTScausal_conv1d", "linear attention"),
    ],
)
def test_what_a_dense_model_needs(library: str, entry: str, needed: str) -> None:
    module = xpu_kernels.Module(library, 0, b"", (entry,), "")
    assert xpu_kernels.needed_by_mistral(module) == needed


def test_a_module_is_compiled_again_with_doubles_emulated_only_when_it_fails() -> None:
    class Compiler:
        def __init__(self, answers: list[tuple[bool, str]]) -> None:
            self.answers = answers
            self.asked: list[str] = []

        def compile(self, module: xpu_kernels.Module, further: str = "") -> tuple[bool, str]:
            self.asked.append(further)
            return self.answers.pop(0)

    module = xpu_kernels.Module("_C", 0, b"", ("a",), "")
    well = Compiler([(True, "")])
    assert xpu_kernels.outcome(module, well).emulated is None and well.asked == [""]
    mended = Compiler([(False, "no doubles"), (True, "")])
    found = xpu_kernels.outcome(module, mended)
    assert (found.plain, found.emulated, found.reason) == (False, True, "no doubles")
    assert mended.asked == ["", "-ze-fp64-gen-emu"]
    both = xpu_kernels.outcome(module, Compiler([(False, "no doubles"), (False, "too large")]))
    assert both.reason == "no doubles; emulated: too large" and both.entries == ("a",)


def test_the_pin_is_the_lock_files(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(f"torch==2.14.0\nvllm-xpu-kernels==0.1.15.4 \\\n    --hash=sha256:{'ab' * 32}\nx==1\n")
    assert xpu_kernels.pinned(lock) == ("0.1.15.4", "ab" * 32)
    lock.write_text("vllm-xpu-kernels==0.1.15.4\n")
    with pytest.raises(SystemExit, match="with one digest"):
        xpu_kernels.pinned(lock)


def test_an_earlier_result_is_gone_on_with_when_it_is_of_the_same_wheel(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    document = {"schema": 1, "sha256": "a", "modules": []}
    path.write_text(json.dumps({**document, "modules": [{"library": "_C", "index": 0}]}))
    assert xpu_kernels.earlier(path, document) == [{"library": "_C", "index": 0}]
    assert xpu_kernels.earlier(path, {**document, "sha256": "b"}) == []
    assert xpu_kernels.earlier(None, document) == []


def test_the_tables_count_and_give_reasons() -> None:
    row = {"library": "_C", "kernels": 3, "plain": True, "emulated": None, "reason": "", "needed": "yes"}
    failed = {**row, "plain": False, "emulated": True, "reason": "Double type", "index": 1}
    text = xpu_kernels.markdown({"modules": [{**row, "index": 0}, failed]})
    assert "| `_C` | 2 | 1 | 2 | 0 |" in text
    assert "| `_C` 1 | 3 | Double type | compiles | yes |" in text
