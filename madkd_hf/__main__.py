"""`python -m madkd_hf VERB ...` is `madkd VERB ...`."""

from .cli.main import main


if __name__ == "__main__":
    main()
