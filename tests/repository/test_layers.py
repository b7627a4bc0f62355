"""The layers: who may import whom, what the device side may import, and that Python 3.10 takes it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from foveate.engines.targets import TARGETS

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "export": {"export", "calib", "runtime", "engines"},
    "calib": {"calib", "runtime", "engines"},
    "runtime": {"runtime", "engines"},
    "engines": {"engines"},
    "jetson": {"jetson", "runtime", "engines"},
}
BACKENDS = sorted(path.parent.name for path in (ROOT / "engines").glob("*/target.py"))
COMMANDS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))
INNER_ORDER: dict[str, list[str]] = {
    # The modules and sub-packages of a folder. Each may import those in the lines above it, never one below
    # it or beside it in its line. Every module is listed. A folder's __init__ may import all of them.
    "calib": [
        "graph_values input_groups scenes",
        "samples statistics",
        "schemes",
        "smoothing",
        "activation_watch",
    ],
    "calib/scenes": ["draw", "questions"],
    "calib/schemes": ["quantized", "graph_site", "scheme", "fp8 int4 int8"],
    "calib/smoothing": ["awq fold smoothquant"],
    "engines": [
        "child errors hidden_install spec",
        "disk buffer workarounds",
        "row_gather topk_logits",
        "engine",
        "backend prefill_switch",
        " ".join(BACKENDS),
        "targets",
    ],
    "engines/disk": ["mounts lock_owner", "locks", "files"],
    "engines/ort": ["library page_release", "providers", "compile session", "backend", "target"],
    "engines/trt": [
        "limits logger onnx_dims plan_check plan_file timing_cache workarounds library cuda",
        "contexts profiles",
        "runner",
        "builder",
        "backend",
        "target",
    ],
    "engines/trt/cuda": ["libcudart pool requirement", "gpu", "device", "step_graphs"],
    "export": [
        "lowering spec",
        "networks",
        "checkpoints model_parts pruning",
        "methods settings",
        "graphs keys",
        "bundling other_checkpoints",
        "calibration models",
        "build_bundle",
        "build",
        "optimum_cli",
    ],
    "export/bundling": [
        "json_schema precision staging weight_store",
        "graph_weights publish",
        "reference",
        "write_files write_graphs",
    ],
    "export/bundling/reference": ["near_ties ranges", "graph", "run"],
    "export/calibration": ["prompts", "calibrate"],
    "export/checkpoints": [
        "files layered_weights model_names prequantized",
        "hub tensor_files",
        "directory licence",
        "adapters module_weights random_weights",
        "find",
    ],
    "export/checkpoints/adapters": ["lora_config", "lora", "merged"],
    "export/graphs": [
        "graph",
        "in_llm_pruner pre_llm_pruner trace",
        "llm vision",
        "assemble",
    ],
    "export/keys": [
        "key_table settings_types",
        "generation_keys",
        "config_keys processor_keys",
        "checkpoint_keys",
    ],
    "export/networks": [
        "onnx_ops qwen_vision_spec",
        "decoder",
        "clip_layers qwen_vision",
        "clip_text clip_vision",
    ],
    "export/settings": [
        "chat_template generation hf_config special_tokens video_processor vocabulary",
        "chat_proof image_processor",
        "chat_format",
        "prompt",
    ],
    "jetson": ["device", "deployment planner"],
    "jetson/deployment": ["first_question installer remote wheels", "pack", "deploy"],
    "jetson/device": ["devices system", "inventory", "findings power_modes", "doctor"],
    "jetson/planner": ["model_config scratch", "model_sizes", "memory roofline", "plan"],
    "runtime": [
        "bundle clock input_file text",
        "images overflow",
        "answer finite llm video",
        "compiling vision",
        "model",
        "request",
        "answering",
        "conversation",
        "pipeline",
        "measuring",
        "cli",
    ],
    "runtime/bundle": [
        "arrays licence rebuild settings typed_json",
        "manifest",
        "inside stamps",
        "loading",
        "compiled",
    ],
    "runtime/cli": [
        "__main__ options signals streams typed_prompt",
        "bench chat check compile inspect run",
        "watch",
    ],
    "runtime/compiling": [
        "comparison polygraphy_json recorded_run",
        "polygraphy_commands self_test",
        "job polygraphy_folder",
        "work_folder",
        "compile",
    ],
    "runtime/images": [
        "image_url pixels token_layout",
        "image_source view",
        "anyres clip image_file windows",
        "processor",
        "overlay",
    ],
    "runtime/llm": [
        "budget kv_cache logits visual_tokens",
        "prompt_items sampling",
        "generation prompt_rows",
        "cache_rows penalties segment",
        "decoder",
    ],
    "runtime/measuring": ["costs energy", "bench"],
    "runtime/text": ["turns", "chat_format", "chat_prompt", "stops"],
    "runtime/video": ["capture latest_frame video_file"],
    "runtime/vision": ["features pieces question", "pre_llm_pruner", "stages"],
    "scripts": ["generated maintenance speed training", "evaluation", " ".join(COMMANDS)],
    "scripts/evaluation": [
        "arguments contact_sheet plots report store",
        "benchmarks bundles page",
        "lmms_eval_model scenes",
        "compare",
        "claims precision",
    ],
    "scripts/evaluation/benchmarks": [
        "base xlsx",
        "gqa mmbench mme pope refcoco scienceqa textvqa",
        "run",
    ],
    "scripts/generated": ["api_page fit_plan plan_methods plan_models", "generate"],
    "scripts/speed": ["arguments rival_models startup tables", "contenders pruners", "first_token growth"],
    "scripts/training": ["ocvtp shapes"],
    "scripts/training/ocvtp": ["convert decoder features", "trainer", "train"],
    "scripts/training/shapes": ["data model", "stages", "talk", "train"],
}
DEVICE = ("engines", "runtime", "jetson")
DEVICE_LIBRARIES = {"numpy", "PIL", "tokenizers", "foveate"}
OWN_LIBRARIES = {  # library -> the files that may import it
    **{
        library: re.compile(rf"engines/{target.make.__module__.split('.')[2]}/(\w+/)?\w+\.py")
        for target in TARGETS.values()
        for library in target.libraries
    },
    "cv2": re.compile(r"runtime/video/(capture|video_file)\.py"),
}
HOST_ONLY = (
    *("torch", "torchvision", "transformers", "onnx", "onnx_ir", "onnxscript", "optimum", "safetensors"),
    *("huggingface_hub", "rich", "jinja2", "sklearn", "scipy", "matplotlib", "pytest"),
)
AFTER_3_10 = {  # what the standard library gained later; the grammar is checked by parsing
    "tomllib": {None},
    "asyncio": {"Runner", "TaskGroup", "timeout"},
    "contextlib": {"chdir"},
    "datetime": {"UTC"},
    "enum": {"StrEnum", "ReprEnum", "verify", "member", "nonmember"},
    "hashlib": {"file_digest"},
    "itertools": {"batched"},
    "math": {"cbrt", "exp2", "sumprod"},
    "operator": {"call"},
    "os": {"process_cpu_count"},
    "typing": {
        *("Self", "Never", "LiteralString", "NotRequired", "Required", "Unpack", "assert_never", "override"),
        *("TypeVarTuple", "dataclass_transform", "reveal_type"),
    },
}


def sources(*folders: str) -> list[Path]:
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("foveate", *(p for p in parts if p != "__init__")))


def imports(path: Path) -> Iterator[tuple[str, str | None, int]]:
    """(module, name taken from it or None, line) of every import, wherever it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((node.module or "", alias.name, node.lineno) for alias in node.names)


def layer_faults(path: Path, layer: str) -> list[str]:
    faults = []
    for module, name, line in imports(path):
        parts = module.split(".")
        target = parts[1] if len(parts) > 1 else name
        if parts[0] == "foveate" and target not in MAY_IMPORT[layer]:
            faults.append(f"{path.relative_to(ROOT)}:{line}: {layer} may not import {target}")
    return faults


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_imports_follow_the_layers(layer):
    files = sources(layer)
    assert files
    assert not [fault for path in files for fault in layer_faults(path, layer)]


def test_the_layer_test_sees_faults(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    bad = tmp_path / "bad.py"
    bad.write_text(
        "def f():\n    from foveate.export import build\n    import foveate.calib.scenes.questions\n"
        "    from foveate import export\n"
    )
    assert len(layer_faults(bad, "runtime")) == 3
    bad.write_text("from foveate.engines.spec import Symbol\n")
    assert layer_faults(bad, "runtime") == []


def order_faults(folder: str, order: list[str]) -> list[str]:
    """Return what a folder's modules import although it does not come before them in ``order``."""
    rank = {name: number for number, line in enumerate(order) for name in line.split()}
    package = folder.split("/")
    package = package[1:] if package[0] == "scripts" else ["foveate", *package]  # scripts/ is on the path
    faults = []
    for path in sources(folder):
        name = path.relative_to(ROOT / folder).parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        if name not in rank:
            faults.append(f"{folder}: {name} is not in the order")
            continue
        for module, taken, line in imports(path):
            parts = [*module.split("."), *([taken] if taken else [])]
            if parts[: len(package)] != package or len(parts) == len(package):
                continue
            target = parts[len(package)]
            if target in rank and target != name and rank[target] >= rank[name]:
                where = path.relative_to(ROOT)
                faults.append(f"{where}:{line}: {folder}: {name} may not import {target}")
    return faults


@pytest.mark.parametrize("folder", INNER_ORDER)
def test_imports_inside_a_folder_follow_its_order(folder):
    order = INNER_ORDER[folder]
    names = " ".join(order).split()
    known = {
        path.stem for path in (ROOT / folder).iterdir() if path.suffix == ".py" or any(path.glob("*.py"))
    }
    assert sorted(names) == sorted(known - {"__init__"})
    assert not order_faults(folder, order)


def test_the_order_test_sees_faults(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for name, text in {
        "part/low.py": (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from foveate.part.high import A\n"
        ),
        "part/beside.py": "def f():\n    from foveate.part import low\n",
        "part/high/__init__.py": "import foveate.part.low\n",
        "part/high/inner.py": "from foveate.part.high import other\nfrom foveate.part import top, low\n",
        "part/new.py": "",
        "scripts/low/one.py": "from high import two\nfrom low import other\n",
        "scripts/high/two.py": "def f():\n    from low.one import A\n    import high.two\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    assert order_faults("part", ["low beside", "high", "top"]) == [
        "part/beside.py:2: part: beside may not import low",
        "part/high/inner.py:2: part: high may not import top",
        "part/low.py:3: part: low may not import high",
        "part: new is not in the order",
    ]
    assert order_faults("scripts", ["low", "high"]) == [
        "scripts/low/one.py:1: scripts: low may not import high"
    ]


def test_nothing_imports_a_top_level_folder_by_its_bare_name():
    """``import export`` works from the repository root, and is another module than ``foveate.export``."""
    for path in sources(*MAY_IMPORT, "scripts", "tests"):
        for module, _, line in imports(path):
            assert module.split(".")[0] not in MAY_IMPORT, f"{path}:{line}: import foveate.{module}"


@pytest.mark.parametrize("path", sources(*DEVICE), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_device_side_imports_only_its_few_libraries(path):
    where = path.relative_to(ROOT).as_posix()
    for module, _, line in imports(path):
        top = module.split(".")[0]
        if top in sys.stdlib_module_names or top in DEVICE_LIBRARIES:
            continue
        assert top in OWN_LIBRARIES, f"{where}:{line}: {top} is not for the device side"
        assert OWN_LIBRARIES[top].fullmatch(where), f"{where}:{line}: {top} belongs in its backend's file"


@pytest.mark.parametrize("path", sources(*DEVICE), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_device_side_is_python_3_10(path):
    text = path.read_text()
    tree = ast.parse(text, feature_version=(3, 10))
    stars = [n for n in ast.walk(tree) if isinstance(n, ast.Subscript) and isinstance(n.slice, ast.Starred)]
    assert not stars and not any(isinstance(n, ast.TryStar) for n in ast.walk(tree))
    used = {(module, name) for module, name, _ in imports(path)}
    used |= {
        (n.value.id, n.attr)
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
    }
    later = {(m, n) for m, names in AFTER_3_10.items() for n in names}
    assert not {(m, n) for m, n in used if (m, n) in later or (m, None) in later}


def test_device_modules_import_without_the_host_libraries():
    need_libraries = tuple(f"foveate.engines.{name}." for name in BACKENDS if name != "ort")
    modules = [m for m in map(module_name, sources(*DEVICE)) if not m.startswith(need_libraries)]
    modules += [f"foveate.engines.{name}.target" for name in BACKENDS]
    script = (
        "import importlib, sys\n"
        f"for name in {(*HOST_ONLY, 'tensorrt', 'tensorrt_rtx')!r}:\n    sys.modules[name] = None\n"
        f"for name in {modules!r}:\n    importlib.import_module(name)\n"
        "import foveate.runtime\n"
        "assert foveate.runtime.Pipeline.__module__ == 'foveate.runtime.pipeline'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_backend_is_imported_only_when_it_is_named():
    script = (
        "import sys\nimport foveate.runtime, foveate.runtime.cli, foveate.runtime.text.chat_prompt\n"
        "from foveate.runtime import Pipeline\n"
        "lazy = ('onnxruntime', 'tensorrt', 'tensorrt_rtx', 'torch', 'huggingface_hub')\n"
        "print([m for m in lazy if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
