"""Makes ``python -m kintsugi`` the same as the command ``kintsugi``, also in a checkout that is not installed."""

from kintsugi.apps.cli import main

if __name__ == "__main__":
    main()
