"""`python -m serve_app` is `historay-serve`."""

from serve_app.cli import main

main()
