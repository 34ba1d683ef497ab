--- How many operations may be under way at once: first come, first served.
--
-- Those who wait are services, each on a condition of its own, which is fired when its turn has come, and by whoever
-- makes it give up.

local M = {}

---@class bough.contree.gate
---@field limit integer? nil: none, or none known yet
---@field inside integer operations under way
---@field private line bough.contree.turn[] those who wait; from `first` to `last`
local gate = {}
local gate_meta = { __index = gate, __name = "bough.contree.gate" }

--- Somebody who waits; `wanted` turns false when he gives up.
---@class bough.contree.turn
---@field changed table a condition
---@field wanted fun(): boolean
---@field granted boolean?

---@param limit integer?
---@return bough.contree.gate
function M.new(limit)
  return setmetatable({ limit = limit, inside = 0, line = {}, first = 1, last = 0 }, gate_meta)
end

local function has_room(self) return self.limit == nil or self.inside < self.limit end

-- Lets in who is first in the line.
local function call_next(self)
  while self.first <= self.last and has_room(self) do
    local turn = self.line[self.first]
    self.line[self.first] = nil
    self.first = self.first + 1
    if turn.wanted() then
      self.inside = self.inside + 1
      turn.granted = true
      turn.changed:fire()
    end
  end
end

local pass = {}
local pass_meta = { __index = pass, __name = "bough.contree.pass" }

--- Leaves. Twice does nothing; `<close>` does it too.
function pass:leave()
  local from = self.gate
  if not from then return end
  self.gate = nil
  from.inside = from.inside - 1
  call_next(from)
end

pass_meta.__close = pass.leave

--- Waits for room. Only in a service.
---@param changed table condition that is fired when `wanted` has changed
---@param wanted fun(): boolean whether to go on waiting
---@return { leave: fun(self) }? pass nil when it is not wanted any more
function gate:enter(changed, wanted)
  if not wanted() then return nil end
  if not self:is_full() then
    self.inside = self.inside + 1
    return setmetatable({ gate = self }, pass_meta)
  end
  local turn = { changed = changed, wanted = wanted }
  self.last = self.last + 1
  self.line[self.last] = turn
  while not turn.granted and wanted() do changed:wait() end
  local given = setmetatable({ gate = turn.granted and self or nil }, pass_meta)
  if turn.granted and wanted() then return given end
  given:leave() -- to the next
  return nil
end

--- Whether somebody who came now would have to wait.
---@return boolean
function gate:is_full() return not has_room(self) or self.first <= self.last end

--- Sets another limit.
---@param limit integer?
function gate:set(limit)
  self.limit = limit
  call_next(self)
end

return M
