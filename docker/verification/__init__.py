"""What docker/verify is made of. It needs Python and a container engine, nothing else."""
