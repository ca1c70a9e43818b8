"""Everything declarative is in pyproject.toml; what has to be computed at build time goes here."""

from setuptools import setup

setup()
