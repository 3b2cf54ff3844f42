#!lua flags=allow-oom
-- Reads the versions of tags. KEYS: their versions; of one tag alone in a Cluster.
return redis.call('MGET', unpack(KEYS))
