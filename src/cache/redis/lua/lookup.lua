#!lua flags=allow-oom
-- Reads the versions and entries of tags, and opens each tag that has no version with the fresh one,
-- unless a write is in flight on it: the caller is about to fill. Returns the values of the versions
-- and entries, with the versions that were set.
-- A fresh version is for one execution only: a second could set it again after a write.
-- KEYS: for each tag its version, or its version and an entry; then the writers of each tag. In a
-- Cluster one tag only.
-- ARGV: the fresh version, its time to live in ms, the number of values for each tag: 1 or 2.
local values = tonumber(ARGV[3])
local tags = #KEYS / (values + 1)
local found = redis.call('MGET', unpack(KEYS, 1, tags * values))
local now
for i = 1, tags do
  local version = (i - 1) * values + 1
  if not found[version] then
    if not now then
      -- The deadlines were set by this server's clock too, so no two clocks are ever compared.
      local time = redis.call('TIME')
      now = time[1] * 1000 + math.floor(time[2] / 1000)
    end
    local writers = KEYS[tags * values + i]
    redis.call('ZREMRANGEBYSCORE', writers, '-inf', now)
    if redis.call('EXISTS', writers) == 0 then
      redis.call('SET', KEYS[version], ARGV[1], 'PX', ARGV[2])
      found[version] = ARGV[1]
    end
  end
end
return found
