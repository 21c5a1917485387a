"""`python -m tract7dt` is `tract7dt`."""

from .cli.main import main

if __name__ == "__main__":
    main()
