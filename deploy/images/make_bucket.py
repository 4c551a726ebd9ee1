"""Creates the bucket of IMPRINT_STORE_URL if it does not exist: a new object store has none."""

import os
from urllib.parse import urlsplit

import boto3
from botocore.exceptions import ClientError

bucket = urlsplit(os.environ["IMPRINT_STORE_URL"]).netloc
client = boto3.client(
    "s3",
    endpoint_url=os.environ.get("IMPRINT_S3_ENDPOINT_URL"),
    region_name=os.environ.get("IMPRINT_S3_REGION", "us-east-1"),
    aws_access_key_id=os.environ["IMPRINT_S3_ACCESS_KEY_ID"],
    aws_secret_access_key=os.environ["IMPRINT_S3_SECRET_ACCESS_KEY"],
)
try:
    client.create_bucket(Bucket=bucket)
    print(f"created the bucket {bucket}")
except ClientError as error:
    if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
        raise
    print(f"the bucket {bucket} exists")
