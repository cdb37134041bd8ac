"""Packages of the wheel: the code, and the folder configs/ as dynsparse/configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["dynsparse*", "pipelines*"]), "dynsparse.configs"],
    package_dir={"dynsparse.configs": "configs"},
)
