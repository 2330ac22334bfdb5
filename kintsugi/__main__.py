"""``python -m kintsugi`` is the command ``kintsugi``, also where only the checkout is there."""

from kintsugi.apps.cli import main

if __name__ == "__main__":
    main()
