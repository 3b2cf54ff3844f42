#!lua flags=allow-oom
-- Closes a tag for a write: notes the write as in flight, drops the version and the entries.
-- Memory that has run out must not keep a write from invalidating, hence the flag.
-- Answers how many entries the index held, and 1 if they were detached to be dropped later.
-- KEYS: version, writers, keys, the name to detach them under.
-- ARGV: the write or '' for none, its deadline in ms from now, the part before the member in an
-- entry's key, how many entries to drop at once, time to live in ms.
if ARGV[1] ~= '' then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
redis.call('DEL', KEYS[1])
local count = redis.call('SCARD', KEYS[3])
if count == 0 then
  return {0, 0}
end
if count > tonumber(ARGV[4]) then
  redis.call('RENAME', KEYS[3], KEYS[4])
  redis.call('PEXPIRE', KEYS[4], ARGV[5])
  return {count, 1}
end
local dead = redis.call('SMEMBERS', KEYS[3])
for i, member in ipairs(dead) do
  dead[i] = ARGV[3] .. member
end
dead[#dead + 1] = KEYS[3]
redis.call('UNLINK', unpack(dead))
return {count, 0}
