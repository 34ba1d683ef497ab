--- A walk over the tree of an image on a ConTree service, parents first, the names of a directory sorted.
--
-- Each directory is a request, so many are under way at once: those that the walk comes to next. Services fetch them;
-- they know the walk's state and not the walk, so that one that is dropped ends by itself.

local core = require "bough.core"
local errors = require "bough.error"
local tree = require "bough.contree.tree"

local M = {}

local WIDTH = 32 -- requests at a time
local ROWS = 20000 -- of directories that are fetched ahead
local WINDOW = 256 -- directories
local DEEPEST = 4096 -- directories in each other: no image has that, but who knows what answers

---@class bough.contree.walk_directory
---@field path string below the start; "" for the start
---@field depth integer of its entries
---@field rows table[]? sorted, when they are there
---@field inner table<table, bough.contree.walk_directory> of the rows that are entered
---@field following bough.contree.walk_directory? in the order of the walk, of those not yet walked
---@field task bough.task? that fetches it
---@field problem any

---@class bough.contree.walk_state
---@field first bough.contree.walk_directory? the next in the order of the walk that has not been walked
---@field busy integer
---@field ahead integer rows that are there and have not been walked
---@field changed any condition
---@field closed boolean?

---@class bough.contree.walk
---@field private state bough.contree.walk_state
---@field private levels table[]
local walk = {}
local walk_meta = { __index = walk, __name = "bough.contree.walk" }

local function by_name(a, b) return a.name < b.name end

local function join(path, name) return path == "" and name or path .. "/" .. name end

-- Takes the rows in, and lines up the directories among them right behind this one.
local function take(state, directory, rows)
  table.sort(rows, by_name)
  local last = directory
  for _, row in ipairs(rows) do
    row.path = join(directory.path, row.name)
    if row.kind == "dir" and state.enter(row, directory.depth) then
      if directory.depth >= DEEPEST then errors.raise("protocol", "walk", "the service's directories have no end") end
      local inner = { path = row.path, depth = directory.depth + 1, inner = {}, following = last.following }
      last.following, last = inner, inner
      directory.inner[row] = inner
    end
  end
  directory.rows = rows
  state.ahead = state.ahead + #rows
end

local pump

local function fetch(state, directory)
  local good, problem = pcall(function() take(state, directory, state.fetch(directory.path)) end)
  if not good then directory.problem = problem end
  state.busy, directory.task = state.busy - 1, nil
  if not state.closed then pcall(pump, state) end
  state.changed:fire()
end

-- Asks for what comes next, as far as there is room. What the walk waits for is always asked for.
function pump(state)
  local directory, count = state.first, 0
  while directory and (count == 0 or (state.busy < WIDTH and state.ahead < ROWS and count < WINDOW)) do
    if not directory.rows and not directory.task and directory.problem == nil then
      state.busy = state.busy + 1
      directory.task = core.service(fetch, state, directory)
    end
    directory, count = directory.following, count + 1
  end
end

--- Begins a walk below a directory. The first rows are fetched by the first `next`.
---@param fetch_rows fun(path: string): table[] the rows of the directory at a path below the start
---@param enter fun(row: table, depth: integer): boolean whether to walk a directory; `row.path` is its path
---@return bough.contree.walk
function M.new(fetch_rows, enter)
  local root = { path = "", depth = 1, inner = {} }
  return setmetatable({
    state = { first = root, busy = 0, ahead = 0, changed = core.condition(), fetch = fetch_rows, enter = enter },
    levels = { { directory = root, at = 0 } },
  }, walk_meta)
end

-- Waits until the directory, the next one to be walked, is there.
local function arrive(state, directory)
  while not directory.rows do
    if directory.problem ~= nil then error(directory.problem, 0) end
    pump(state)
    if not directory.rows and directory.problem == nil then state.changed:wait() end
  end
  state.first, directory.following = directory.following, nil
  state.ahead = state.ahead - #directory.rows
end

--- The next entry, with its `path` below the start; nil behind the last. Waits.
---@return table? row
function walk:next()
  local levels, state = self.levels, self.state
  while #levels > 0 do
    local level = levels[#levels]
    local directory = level.directory
    if level.at == 0 then arrive(state, directory) end
    level.at = level.at + 1
    local row = directory.rows[level.at]
    if not row then
      levels[#levels] = nil
    else
      directory.rows[level.at] = false
      local inner = directory.inner[row]
      directory.inner[row] = nil
      if inner then levels[#levels + 1] = { directory = inner, at = 0 } end
      return row
    end
  end
  return nil
end

--- Ends it: what is under way is cancelled. Never waits.
function walk:close()
  local state = self.state
  if state.closed then return end
  state.closed = true
  local directory = state.first
  while directory do
    if directory.task then directory.task:cancel() end
    directory = directory.following
  end
  self.levels, state.first = {}, nil
end

walk_meta.__close = walk.close

--- A walk below a directory of an image. Waits for that directory. Raises `not_found`, and `invalid` for what is none.
---@param driver table
---@param uuid string
---@param path string
---@param enter fun(row: table, depth: integer): boolean
---@return bough.contree.walk
function M.start(driver, uuid, path, enter)
  local rows, real = tree.list(driver, uuid, path)
  local prefix = real:gsub("/$", "")
  local function fetch_rows(inner)
    if inner ~= "" then return tree.fetch(driver, uuid, prefix .. "/" .. inner) end
    local first = rows
    rows = nil
    return first
  end
  return M.new(fetch_rows, enter)
end

return M
