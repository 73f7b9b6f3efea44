"""`python -m lightllm.cluster.workers KIND ...`"""

import sys

from lightllm.cluster.workers.command import main

sys.exit(main())
