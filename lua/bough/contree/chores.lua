--- Work in the background that anybody may ask for, finalisers too: cancels above all.
--
-- Asking never waits and starts nothing: a service that stands by takes the work and gives each piece a service of its
-- own. It stands by as long as there is something that may need it.

local core = require "bough.core"

local M = {}

---@class bough.contree.chores
---@field private list table[] work that nobody has taken yet
---@field private called table condition
---@field private busy integer
---@field private held integer those who may ask for something
---@field private standing boolean? the service is there
---@field private report fun(problem: any)
local chores = {}
local chores_meta = { __index = chores, __name = "bough.contree.chores" }

---@param report fun(problem: any) told of what goes wrong; must not raise
---@return bough.contree.chores
function M.new(report)
  return setmetatable({ list = {}, called = core.condition(), busy = 0, held = 0, report = report }, chores_meta)
end

local function perform(self, fn, ...)
  local good, problem = pcall(fn, ...)
  self.busy = self.busy - 1
  if not good then self.report(problem) end
end

local function stand_by(self)
  while self.held > 0 or self.list[1] do
    local list = self.list
    self.list = {}
    for _, work in ipairs(list) do
      self.busy = self.busy + 1
      core.service(perform, self, table.unpack(work, 1, work.n))
    end
    if self.held > 0 and not self.list[1] then self.called:wait() end
  end
  self.standing = nil
end

--- Stands by from now on, until `release` has been called as often. Not in a finaliser.
function chores:hold()
  self.held = self.held + 1
  if self.standing then return end
  self.standing = true
  core.service(stand_by, self)
end

function chores:release()
  self.held = self.held - 1
  if self.held == 0 then self.called:fire() end
end

--- Has `fn(...)` done soon, if it is held. Never waits, and works in a finaliser.
---@param fn function may wait
function chores:add(fn, ...)
  self.list[#self.list + 1] = table.pack(fn, ...)
  self.called:fire()
end

--- Whether all is done.
---@return boolean
function chores:idle() return self.busy == 0 and not self.list[1] end

return M
