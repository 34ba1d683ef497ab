--- Remembers what was asked for of late, up to a bound. What images hold never changes, so it is worth it.

local M = {}

---@class bough.contree.recent
---@field private young table<string, any>
---@field private old table<string, any>
---@field private weights table<string, number>
---@field private room number for each of the two generations
---@field private used number by the young
local recent = {}
local recent_meta = { __index = recent, __name = "bough.contree.recent" }

--- What is kept weighs at most `room` together.
---@param room number
---@return bough.contree.recent
function M.new(room)
  return setmetatable({ young = {}, old = {}, weights = {}, room = room / 2, used = 0 }, recent_meta)
end

--- Keeps a value; what has not been asked for the longest goes. One that is too heavy is not kept.
---@param key string
---@param value any not nil
---@param weight number
function recent:put(key, value, weight)
  if self.young[key] ~= nil then self.used = self.used - self.weights[key] end
  if weight > self.room then
    self.young[key], self.old[key], self.weights[key] = nil, nil, nil
    return
  end
  if self.used + weight > self.room then
    for name in pairs(self.old) do
      if self.young[name] == nil then self.weights[name] = nil end
    end
    self.old, self.young, self.used = self.young, {}, 0
  end
  self.young[key], self.weights[key] = value, weight
  self.used = self.used + weight
end

---@param key string
---@return any value nil where it is not known
function recent:get(key)
  local value = self.young[key]
  if value ~= nil then return value end
  value = self.old[key]
  if value ~= nil then self:put(key, value, self.weights[key]) end
  return value
end

--- Forgets one.
---@param key string
function recent:drop(key)
  if self.young[key] ~= nil then self.used = self.used - self.weights[key] end
  self.young[key], self.old[key], self.weights[key] = nil, nil, nil
end

return M
