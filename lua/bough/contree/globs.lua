--- Which files of a tree are wanted, by patterns: as bough-look takes them.
--
-- A pattern without "/" is a name anywhere, one with "/" a path below the start, one that ends in "/" a directory. A
-- pattern with "!" in front drops, and nothing below a directory that is dropped is looked at. Without others, all is
-- wanted that is not dropped.

local glob = require "bough.glob"

local M = {}

---@class bough.contree.globs
---@field private keeps table[]
---@field private drops table[]
local globs = {}
local globs_meta = { __index = globs, __name = "bough.contree.globs" }

local function split(pattern)
  local parts = {}
  for part in pattern:gmatch "[^/]+" do parts[#parts + 1] = part end
  return parts
end

-- Tests of how a path must begin to lead to a match, by its depth; nil where that cannot be told by parts.
local function ways(pattern)
  if pattern:find "[{\\%[]" then return nil end
  local tests, parts = {}, split(pattern)
  for i = 1, #parts - 1 do
    if parts[i] == "**" then
      -- from here on, whatever is below the beginning
      tests.beyond = i == 1 and function() return true end
        or glob.path(table.concat(parts, "/", 1, i - 1) .. "/**")
      tests.from = i
      return tests
    end
    tests[i] = glob.path(table.concat(parts, "/", 1, i))
  end
  if parts[#parts] == "**" then
    tests.from = #parts
    tests.beyond = #parts == 1 and function() return true end or glob.path(pattern)
  end
  return tests
end

local function compile(pattern)
  local made = { dirs_only = #pattern > 1 and pattern:sub(-1) == "/" }
  local text = pattern:gsub("(.)/+$", "%1")
  made.whole = text:find("/", 1, true) ~= nil
  text = text:gsub("^/+", "")
  if made.whole then
    made.test, made.ways = glob.path(text), ways(text)
  else
    made.test = glob.name(text)
  end
  return made
end

--- Compiles patterns.
---@param patterns string[]
---@return bough.contree.globs
function M.new(patterns)
  local self = setmetatable({ keeps = {}, drops = {} }, globs_meta)
  for _, pattern in ipairs(patterns) do
    local rest = pattern:match "^!(.*)$"
    local list = rest and self.drops or self.keeps
    list[#list + 1] = compile(rest or pattern)
  end
  return self
end

local function fits(one, path, name, is_dir)
  if one.dirs_only and not is_dir then return false end
  return one.test(one.whole and path or name)
end

local function any(list, path, name, is_dir)
  for _, one in ipairs(list) do
    if fits(one, path, name, is_dir) then return true end
  end
  return false
end

--- Whether an entry is wanted.
---@param path string below the start
---@param name string its last part
---@param is_dir boolean
---@return boolean
function globs:want(path, name, is_dir)
  if any(self.drops, path, name, is_dir) then return false end
  return #self.keeps == 0 or any(self.keeps, path, name, is_dir)
end

local function may_lead(one, path, depth)
  if not one.whole or not one.ways then return true end
  if one.ways.from and depth >= one.ways.from then return one.ways.beyond(path) end
  local test = one.ways[depth]
  return test ~= nil and test(path)
end

--- Whether anything in a directory can be wanted.
---@param path string below the start
---@param name string its last part
---@param depth integer 1: in the start itself
---@return boolean
function globs:enter(path, name, depth)
  if any(self.drops, path, name, true) then return false end
  if #self.keeps == 0 then return true end
  for _, one in ipairs(self.keeps) do
    if may_lead(one, path, depth) then return true end
  end
  return false
end

--- Whether a file is wanted, and no directory on the way to it is dropped.
---@param path string below the start
---@return boolean
function globs:reach(path)
  for stop in path:gmatch "()/" do
    local directory = path:sub(1, stop - 1)
    if any(self.drops, directory, directory:match "[^/]*$", true) then return false end
  end
  return self:want(path, path:match "[^/]*$", false)
end

return M
