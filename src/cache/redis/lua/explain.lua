#!lua flags=allow-oom
-- Returns a tag's version, the number of writes in flight on it, an entry's header and its length.
-- KEYS: version, writers, entry. ARGV: the header's length.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return {
  redis.call('GET', KEYS[1]),
  redis.call('ZCOUNT', KEYS[2], '(' .. string.format('%.0f', now), '+inf'),
  redis.call('GETRANGE', KEYS[3], 0, ARGV[1] - 1),
  redis.call('STRLEN', KEYS[3]),
}
