"""Makes a bucket in the store that the environment tells of: make_bucket.py BUCKET"""

import os
import sys

from pyarrow.fs import S3FileSystem

S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"], allow_bucket_creation=True).create_dir(sys.argv[1])
