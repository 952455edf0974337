"""`python -m ray_pipeline` is the `historay` command."""

from ray_pipeline.cli import main

if __name__ == "__main__":
    main()
