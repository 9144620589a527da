"""`python -m scaling VERB` is `scaling VERB`."""

import sys

from scaling.cli import main

sys.exit(main())
