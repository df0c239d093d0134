"""The build hook for a compiled netstack: the same Python source, its hot path through mypyc into C.

Off unless a build asks for it, with hatchling's own switch for a custom hook:

    HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 pip install .

Which modules are compiled, and how, is in pyproject.toml (`[tool.hatch.build.targets.wheel.hooks.custom]`). The wheel
holds their sources too, for tracebacks and for whoever reads; Python imports the extension module that lies beside one.
Nothing is written into the checkout, so that what runs from it is never an extension older than its source. (The
published hook, hatch-mypyc 0.16, builds in place and moves pyproject.toml out of the way meanwhile.)
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

GROUP = "netstack"
"""Names the one shared library, netstack__mypyc, that holds the code of all modules."""


class CompiledModules(BuildHookInterface[BuilderConfig]):
    """Adds an extension module for each source that `compile` matches; the wheel is then one of a platform.

    Options: `compile`, a list of patterns relative to the project; `optimization`, gcc's level as a string.
    """

    PLUGIN_NAME = "custom"
    _built: TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and tell hatchling what there is. An editable install stays pure: its sources change."""
        if version == "editable":
            return
        self._built = TemporaryDirectory(prefix="netstack-compiled-")
        directory = Path(self._built.name)
        made = _compile(Path(self.root), self.config["compile"], self.config["optimization"], directory)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"].update({str(path): str(path.relative_to(directory / "made")) for path in made})

    def finalize(self, _version: str, _build_data: dict[str, Any], _artifact_path: str) -> None:
        """The wheel is written: what went into it may go."""
        if self._built is not None:
            self._built.cleanup()


def _compile(root: Path, patterns: list[str], optimization: str, directory: Path) -> list[Path]:
    """The extension modules, as they lie relative to `directory`/made. Exits with mypy's messages if it refuses one."""
    # Both are requirements of this hook alone: a pure build has neither.
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    # mypy names modules by where they are relative to the working directory.
    os.chdir(root)
    sources = sorted(
        str(path.relative_to(root))
        for pattern in patterns
        for path in root.glob(pattern)
        if path.name != "__init__.py"  # a docstring each
    )
    # The project's own mypy settings are for `make lint`, where every dependency is installed; here they are not, and
    # need not be.
    settings = ["--config-file=", f"--cache-dir={directory / 'cache'}", "--ignore-missing-imports"]
    modules = mypycify(
        [*settings, *sources],
        opt_level=optimization,
        debug_level="0",
        group_name=GROUP,
        target_dir=str(directory / "c"),
    )
    command = build_ext(Distribution({"name": GROUP, "ext_modules": modules}))
    command.build_lib = str(directory / "made")
    command.build_temp = str(directory / "objects")
    command.ensure_finalized()
    command.run()
    return sorted((directory / "made").rglob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}"))
