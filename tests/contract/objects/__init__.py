"""One contract for every object store: the folder, S3 as moto has it, S3 as OpenStack Swift has it."""
