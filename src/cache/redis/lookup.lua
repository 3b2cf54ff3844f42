#!lua flags=allow-oom
-- Reads tags' versions and entries at one moment. KEYS: a version, or a version and an entry under it,
-- again and again; of one tag alone in a Cluster.
return redis.call('MGET', unpack(KEYS))
