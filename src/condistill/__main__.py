"""`python -m condistill`."""

from condistill.cli import main

if __name__ == "__main__":
    main()
