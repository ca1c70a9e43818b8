"""`python -m dlgpu` is the `dlgpu` command."""

from dlgpu.cli import main

main()
