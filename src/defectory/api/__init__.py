"""The public Python API behind `import defectory`. The command line and the benches use nothing else."""
