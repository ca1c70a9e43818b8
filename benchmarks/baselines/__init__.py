"""What dlgpu is compared with."""
