#!lua
-- Stores an entry and indexes it, if the tag still has the version that the entry begins with.
-- Returns 1 if it did. KEYS: version, index, entry.
-- ARGV: the entry's header and its body, its member in the index, the part before the member in an
-- entry's key, time to live in ms, sample, rounds.
local version = redis.call('GET', KEYS[1])
if not version or version ~= string.sub(ARGV[1], 1, 16) then
  return 0
end
redis.call('SET', KEYS[3], ARGV[1] .. ARGV[2], 'PX', ARGV[5])
redis.call('SADD', KEYS[2], ARGV[3])
-- What leads to an entry outlives it.
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
-- Removes members whose entry has expired or was evicted: samples a few, and more as long as a fifth
-- of a sample or more is dead. So an index that is never closed keeps few of them.
local sample = tonumber(ARGV[6])
for _ = 1, tonumber(ARGV[7]) do
  local dead = {}
  for _, member in ipairs(redis.call('SRANDMEMBER', KEYS[2], sample)) do
    if redis.call('EXISTS', ARGV[4] .. member) == 0 then
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
