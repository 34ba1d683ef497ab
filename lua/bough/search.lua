--- Looking for things in an image: walking, finding by name and kind, searching in files.
--
-- Where an engine has `look`, a walk is one request whose records come as they are found; elsewhere it lists
-- directory by directory.

local check = require "bough.check"
local core = require "bough.core"
local entry = require "bough.entry"
local errors = require "bough.error"
local glob = require "bough.glob"

local M = {}

local raise, quote = errors.raise, errors.quote

-- Matches kept at most unless told otherwise: each costs some hundred bytes.
local MATCHES = 10000

local letters = { file = "f", dir = "d", symlink = "l", fifo = "p", socket = "s", other = "o" }
local kinds = { "file", "dir", "symlink", "fifo", "socket", "other" }

-- Iterates over the records of a look. The second value ends it early.
local function records(look)
  local batch, at = {}, 0
  local over = false
  local function next_record()
    while not over do
      at = at + 1
      local record = batch[at]
      if record then return record end
      batch, at = look:next(), 0
      over = batch == nil
    end
    return nil
  end
  local function stop()
    over = true
    look:close()
  end
  return next_record, stop
end

-- What `for` closes when a loop is left.
local function closer(stop)
  return setmetatable({}, { __close = stop, __name = "iterator" })
end

-- Directory by directory, for engines without `look`.
local function listed(image, path, max_depth)
  local levels = { { entries = image:ls(path), at = 0 } }
  return function()
    while #levels > 0 do
      local level = levels[#levels]
      level.at = level.at + 1
      local found = level.entries[level.at]
      if not found then
        levels[#levels] = nil
      else
        if found.is_dir and #levels < (max_depth or math.huge) then
          levels[#levels + 1] = { entries = image:ls(found.full_path), at = 0 }
        end
        return found
      end
    end
    return nil
  end, function() levels = {} end
end

--- Iterates over what is below `path`, parents first, the names of a directory sorted. The first record has
--- been asked for when this returns, so what is wrong with the path is raised here. Waits.
---@param image bough.image
---@param handle table|userdata the engine's driver
---@param uuid string
---@param path string
---@param opts { kind: string?, globs: string[]?, max_depth: integer?, file: boolean?, op: string } kind:
---  letters of `find`; globs: in the engine's words; file: a path that is no directory yields itself
---@return fun(): bough.entry?
---@return fun() stop ends it early
function M.entries(image, handle, uuid, path, opts)
  if not handle.look then return listed(image, path, opts.max_depth) end
  local args = { "list", "--path", path }
  if opts.kind then table.move({ "--kind", opts.kind }, 1, 2, #args + 1, args) end
  if opts.max_depth then table.move({ "--max-depth", tostring(opts.max_depth) }, 1, 2, #args + 1, args) end
  for _, one in ipairs(opts.globs or {}) do table.move({ "--glob", one }, 1, 2, #args + 1, args) end
  local next_record, stop = records(handle:look(uuid, args))
  local good, first = pcall(next_record)
  if not good or (first and first.path == "" and not opts.file) then
    stop()
    if not good then error(first, 0) end
    raise("invalid", opts.op, "%s: not a directory", quote(path))
  end
  local prefix = path:gsub("/*$", "") .. "/"
  return function()
    local row = first or next_record()
    first = nil
    if not row then return nil end
    return entry.at(image, row.path == "" and path or prefix .. row.path, row)
  end, stop
end

--- The same as a loop takes it, with what closes it on `break`.
function M.iterate(image, handle, uuid, path, opts)
  local next_entry, stop = M.entries(image, handle, uuid, path, opts)
  return function() return check.named(opts.op, next_entry) end, nil, nil, closer(stop)
end

--- What is at a path. Waits.
---@return bough.entry
function M.stat(image, handle, uuid, path)
  if not handle.look then raise("unsupported", "stat", "this engine cannot tell of a single path yet") end
  local next_record, stop = records(handle:look(uuid, { "list", "--path", path, "--max-depth", "0" }))
  local _ <close> = closer(stop)
  return entry.at(image, path, next_record())
end

-- -- find --------------------------------------------------------------------------------------------

local find_keys = { "path", "name", "kind", "larger", "smaller", "newer", "older", "max_depth", "max_count" }

local function kind_letters(value, op)
  if value == nil then return nil end
  local found = {}
  for i, kind in ipairs(check.strings(value, op, "kind") or {}) do
    if not letters[kind] then errors.unknown(op, "kind", kind, kinds) end
    found[i] = letters[kind]
  end
  return table.concat(found)
end

--- Checks the options of `find`.
---@return table opts as `M.entries` takes them
---@return fun(found: bough.entry): boolean wanted
function M.filter(given, op)
  given = errors.check_keys(op, given, find_keys)
  local names, globs = {}, {}
  for i, pattern in ipairs(check.strings(given.name, op, "name") or {}) do
    if pattern:find("/", 1, true) then
      raise("invalid", op, "name = %s is for names, not paths: use image:glob, or path", quote(pattern))
    end
    names[i], globs[i] = glob.name(pattern), pattern:gsub("^!", "\\!")
  end
  local larger = given.larger ~= nil and check.size(given.larger, op, "larger", 0) or nil
  local smaller = given.smaller ~= nil and check.size(given.smaller, op, "smaller", 0) or nil
  local newer, older = check.moment(given.newer, op, "newer"), check.moment(given.older, op, "older")
  local kind = kind_letters(given.kind, op)
  local max_depth = check.count(given.max_depth, op, "max_depth", 1)

  local function wanted(found)
    if (larger or smaller) and not found.is_file then return false end
    if larger and found.size <= larger or smaller and found.size >= smaller then return false end
    if newer and found.mtime <= newer or older and found.mtime >= older then return false end
    if kind and not kind:find(letters[found.kind], 1, true) then return false end
    for _, matches in ipairs(names) do
      if matches(found.name) then return true end
    end
    return #names == 0
  end
  return {
    op = op, file = true, kind = kind, globs = globs, max_depth = max_depth ~= math.huge and max_depth or nil,
    max_count = check.count(given.max_count, op, "max_count", 1) or math.huge,
  }, wanted
end

--- The bytes of an archive. What is wrong with the path is raised here. Waits.
---@param handle table|userdata
---@param uuid string
---@param path string
---@return fun(): string?
function M.archive(handle, uuid, path)
  local next_piece, stop = records(handle:look(uuid, { "pack", "--path", path }))
  local good, first = pcall(next_piece)
  if not good then
    stop()
    error(first, 0)
  end
  return function()
    local piece = first
    first = nil
    return piece or check.named("archive", next_piece)
  end, nil, nil, closer(stop)
end

--- Collects what a filter wants. Waits.
---@return bough.entry[]
function M.find(image, handle, uuid, path, opts, wanted)
  local next_entry, stop = M.entries(image, handle, uuid, path, opts)
  local _ <close> = closer(stop)
  local all = {}
  for found in next_entry do
    if wanted(found) then
      all[#all + 1] = found
      if #all >= opts.max_count then break end
    end
  end
  return all
end

-- -- glob --------------------------------------------------------------------------------------------

-- The directory to begin in, and the rest of the pattern as components.
local function divide(pattern)
  local base, rest = {}, {}
  for name in pattern:gmatch("[^/]+") do
    if #rest == 0 and not glob.is_magic(name) then
      base[#base + 1] = name
    else
      rest[#rest + 1] = name
    end
  end
  if #rest == 0 then rest[1] = table.remove(base) end -- no pattern in it: the directory it is in tells
  return "/" .. table.concat(base, "/"), rest
end

--- The full paths that match a pattern, sorted. Waits.
---@param pattern string absolute
---@return string[]
function M.glob(image, handle, uuid, pattern)
  local only_dirs = pattern:sub(-1) == "/"
  local start, rest = divide(pattern)
  if #rest == 0 then return { "/" } end
  local below = table.concat(rest, "/")
  local matches, depth = glob.path(below)
  local opts = {
    op = "glob", file = true, globs = { "/" .. below }, max_depth = depth ~= math.huge and depth or nil,
  }
  local good, next_entry, stop = pcall(M.entries, image, handle, uuid, start, opts)
  if not good then
    local problem = next_entry
    local is_file = errors.is(problem, "invalid") and not handle.look -- where a directory was listed
    if is_file or errors.is(problem, "not_found") then return {} end
    error(problem, 0)
  end
  local _ <close> = closer(stop)
  local found, skip = {}, start == "/" and 2 or #start + 2
  for one in next_entry do
    if (one.is_dir or not only_dirs) and matches(one.full_path:sub(skip)) then
      found[#found + 1] = one.full_path
    end
  end
  table.sort(found)
  return found
end

-- -- grep --------------------------------------------------------------------------------------------

local grep_keys = {
  "path", "glob", "fixed", "case", "before", "after", "context", "max_count", "max_total", "max_bytes",
  "seconds",
}

---@class bough.match
---@field type "match"|"context"
---@field path string absolute, in the image
---@field line_number integer from 1
---@field line string without its newline; very long ones are cut
---@field length integer of the whole line
---@field unended boolean? it is its file's last line, and no newline ends it
---@field offset integer of the line in its file
---@field submatches integer[][]? { first, last } of each match in the line

local match_meta = {
  __name = "bough.match",
  __tostring = function(self)
    local line = self.line:gsub("%c", function(c) return c == "\t" and c or "?" end)
    local sign = self.type == "context" and "-" or ":"
    return ("%s%s%d%s %s"):format(self.path:gsub("%c", "?"), sign, self.line_number, sign, line)
  end,
}

local function insensitive(patterns, case, is_fixed, op)
  if case == nil or case == "sensitive" then return false end
  if case == "insensitive" then return true end
  if case ~= "smart" then errors.unknown(op, "case", case, { "sensitive", "insensitive", "smart" }) end
  for _, pattern in ipairs(patterns) do
    -- \W and the like are no capitals
    if (is_fixed and pattern or pattern:gsub("\\.", "")):find("%u") then return false end
  end
  return true
end

--- Checks the arguments of `grep` and turns them into those of `look`.
---@param pattern string|string[]
---@param given table?
---@param resolve fun(path: any): string makes paths absolute
---@param op string
---@return string[] args
---@return { seconds: number?, max_bytes: number } bounds
function M.grep_args(pattern, given, resolve, op)
  given = errors.check_keys(op, given, grep_keys)
  local patterns = check.strings(pattern, op, "the pattern")
  if not patterns then
    raise("invalid", op, "expected a pattern or an array of them, got %s", quote(pattern))
  end
  local args = { "grep" }
  local function add(...) table.move({ ... }, 1, select("#", ...), #args + 1, args) end
  for _, one in ipairs(patterns) do
    if one:find("\n", 1, true) then
      raise("invalid", op, "the pattern %s holds a newline, which no line has: give an array", quote(one))
    end
    add("-e", one)
  end
  local is_fixed = check.boolean(given.fixed, op, "fixed")
  if is_fixed then add "--fixed" end
  if insensitive(patterns, given.case, is_fixed, op) then add "--ignore-case" end
  for _, path in ipairs(check.strings(given.path, op, "path") or { "/" }) do add("--path", resolve(path)) end
  for _, one in ipairs(check.strings(given.glob, op, "glob") or {}) do add("--glob", one) end
  local context = check.count(given.context, op, "context", 0)
  for _, name in ipairs { "before", "after" } do
    local lines = check.count(given[name], op, name, 0) or context
    if lines then add("--" .. name, ("%d"):format(lines == math.huge and 1 << 30 or lines)) end
  end
  local max_count = check.count(given.max_count, op, "max_count", 1)
  if max_count and max_count ~= math.huge then add("--max-count", ("%d"):format(max_count)) end
  local max_total = check.count(given.max_total, op, "max_total", 1) or MATCHES
  if max_total ~= math.huge then add("--max-total", ("%d"):format(max_total)) end
  local max_bytes = given.max_bytes ~= nil and check.size(given.max_bytes, op, "max_bytes", 1) or math.huge
  return args, { seconds = check.timeout(given.seconds, op, "seconds"), max_bytes = max_bytes }
end

--- Runs a search. Waits.
---@param bounds { seconds: number?, max_bytes: number }
---@return { matches: bough.match[], truncated: boolean, files: integer? }
function M.grep(handle, uuid, args, bounds)
  local look = handle:look(uuid, args)
  local next_record, stop = records(look)
  local _ <close> = closer(stop)
  local matches, bytes = {}, 0
  local function collect()
    for record in next_record do
      bytes = bytes + #record.line
      if bytes > bounds.max_bytes then return false end
      matches[#matches + 1] = setmetatable(record, match_meta)
    end
    return true
  end
  local whole
  local seconds = bounds.seconds or math.huge
  if seconds < math.huge then
    local over = core.now() + seconds
    local good, result = pcall(core.deadline, seconds, collect)
    -- a deadline of the caller's is not ours
    if not good and (core.now() < over or not errors.is(result, "timeout")) then error(result, 0) end
    whole = good and result
  else
    whole = collect()
  end
  if not whole then return { matches = matches, truncated = true } end
  local _, truncated, files = look:numbers()
  return { matches = matches, truncated = truncated == 1, files = files }
end

--- All records of a look. Waits.
---@return table[]
function M.all(handle, ...)
  local next_record, stop = records(handle:look(...))
  local _ <close> = closer(stop)
  local all = {}
  for record in next_record do all[#all + 1] = record end
  return all
end

return M
