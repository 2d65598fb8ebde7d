"""What pyproject.toml cannot say: the shipped files stand at the top of the checkout, once.

``src/trimtab/shipped.py`` looks for them in both places.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("recipes", "constraints.txt")


class BuildWithShipped(build_py):
    """Copies the shipped files into the package of a wheel; an editable install reads them here."""

    def run(self) -> None:
        """As ``build_py.run``, and then the copies."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "trimtab" / "shipped"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in SHIPPED:
            if Path(name).is_dir():
                shutil.copytree(name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(name, target / name)


setup(cmdclass={"build_py": BuildWithShipped})
