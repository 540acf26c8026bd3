"""moto's S3 server without its log of requests: `python -m jobs.local_cluster.s3_server -H 127.0.0.1 -p PORT`.

Ranges are read by presigned URLs (`triplane.ranges`), which hold the key's id, the session's token and a signature: in a log they would outlive
the request. What goes wrong in the server is logged as before. Source: werkzeug `_internal._log`, which keeps a level that is set.
"""

import logging

from moto.server import main

if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    main()
