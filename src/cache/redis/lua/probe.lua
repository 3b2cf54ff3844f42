#!lua flags=allow-oom
-- Runs every command that the other scripts run, so that a server that refuses one is found before it
-- is used. Two replicas may run it at once: each in one step.
-- KEYS: a tag's version, writers, index, a name to detach the index under, an entry.
-- ARGV: the entry's member in the index, time to live in ms.
redis.call('TIME')
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[5], ARGV[1], 'PX', ARGV[2])
redis.call('MGET', KEYS[1], KEYS[5])
redis.call('GET', KEYS[1])
redis.call('GETRANGE', KEYS[5], 0, 1)
redis.call('STRLEN', KEYS[5])
redis.call('ZADD', KEYS[2], 1, ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('ZCOUNT', KEYS[2], '-inf', '+inf')
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', 0)
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('SADD', KEYS[3], ARGV[1])
redis.call('SRANDMEMBER', KEYS[3], 1)
redis.call('SCARD', KEYS[3])
redis.call('SMEMBERS', KEYS[3])
redis.call('SREM', KEYS[3], '')
redis.call('EXISTS', KEYS[3])
redis.call('RENAME', KEYS[3], KEYS[4])
redis.call('SSCAN', KEYS[4], '0', 'COUNT', 1)
redis.call('UNLINK', KEYS[3], KEYS[4], KEYS[5])
redis.call('DEL', KEYS[1], KEYS[2])
return 1
