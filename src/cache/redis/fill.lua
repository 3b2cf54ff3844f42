#!lua
-- Stores an entry and indexes it, if the tag still has the version that the entry begins with.
-- Answers 1 if it did. KEYS: version, keys, entry.
-- ARGV: entry, its member in keys, the part before the member in an entry's key, time to live in ms,
-- sample, rounds.
local version = redis.call('GET', KEYS[1])
if not version or version ~= string.sub(ARGV[1], 1, 16) then
  return 0
end
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[4])
redis.call('SADD', KEYS[2], ARGV[2])
-- What leads to an entry outlives it.
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
-- Members whose entry has expired or was evicted: a few are looked for, and more as long as a fifth
-- of a sample or more was dead. So a set that nobody closes keeps few of them.
local sample = tonumber(ARGV[5])
for _ = 1, tonumber(ARGV[6]) do
  local dead = {}
  for _, member in ipairs(redis.call('SRANDMEMBER', KEYS[2], sample)) do
    if redis.call('EXISTS', ARGV[3] .. member) == 0 then
      dead[#dead + 1] = member
    end
  end
  if #dead > 0 then
    redis.call('SREM', KEYS[2], unpack(dead))
  end
  if #dead * 5 < sample then
    break
  end
end
return 1
