"""Build step that adds conf/ to wheels. All other settings of the build are in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """Copies conf/, which is at the top level of the repository, to diffusion_lab/conf in a wheel.

    An editable installation reads conf/ in the repository.
    """

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)  # files from earlier builds would be in the wheel, too
        super().run()
        if not self.editable_mode:
            shutil.copytree("conf", Path(self.build_lib, "diffusion_lab", "conf"))


setup(cmdclass={"build_py": BuildWithConf})
