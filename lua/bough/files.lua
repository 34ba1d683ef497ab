--- File specs: what goes into an image, and where to.
--
-- `plan` reads what the caller wrote, without touching a file: every wrong spec, and a destination given
-- twice, is refused here. `expand` looks at the local files, walks trees, and makes the array of items that
-- engines take: { path, kind, mode, uid, gid, mtime, source | content | digest | target }.

local core = require "bough.core"
local check = require "bough.check"
local errors = require "bough.error"
local filespec = require "bough.filespec"
local progress = require "bough.progress"

local M = {}

local raise, quote = errors.raise, errors.quote

local FILE_MODE = 420 -- 0644
local KEEP = -1

local function base_name(path)
  local base = path:match("([^/]+)/*$")
  if base == "." or base == ".." then return nil end
  return base
end

local function refuse_root(entry, op)
  raise("invalid", op, '%s: the destination of %s is the root directory: name the file, as in "/name"',
    entry.where, entry.label)
end

-- The destination as an absolute path without "", "." and "..".
local function resolved(path, cwd, op, where)
  filespec.path(path, op, where .. ": a destination")
  local names = {}
  for name in (path:sub(1, 1) == "/" and path or cwd .. "/" .. path):gmatch("[^/]+") do
    if name == ".." then
      if #names == 0 then raise("invalid", op, "%s: %s leads out of the image", where, quote(path)) end
      names[#names] = nil
    elseif name ~= "." then
      names[#names + 1] = name
    end
  end
  return "/" .. table.concat(names, "/")
end

-- Where a spec goes. `key`: the destination in a dict, nil in a list.
local function entry_of(spec, key, where, opts)
  local op = opts.op
  local entry = filespec.read(spec, op, where)
  local form = entry.form
  local is_local = form == "local" or form == "file" or form == "tree"
  local base = is_local and base_name(entry.value) or nil
  local wanted = key or entry.path
  if wanted then
    if base and wanted:sub(-1) == "/" then wanted = wanted .. base end
  elseif base then
    wanted = base
  else
    raise("invalid", op, '%s: %s %s: write { ["/destination"] = ... }', where, entry.label,
      is_local and "has no name of its own" or "needs a destination")
  end
  entry.path, entry.where = resolved(wanted, opts.cwd, op, where), where
  if entry.path == "/" and form ~= "tree" and form ~= "local" then refuse_root(entry, op) end
  return entry
end

-- -- many specs ------------------------------------------------------------------------------------

-- The array part in order, then the keys sorted.
local function each_spec(specs, what, op, visit)
  local highest, count, keys = 0, 0, {}
  for key in pairs(specs) do
    if math.type(key) == "integer" and key >= 1 then
      highest, count = math.max(highest, key), count + 1
    elseif type(key) == "string" then
      keys[#keys + 1] = key
    else
      raise("invalid", op, "%s has the key %s: destinations are strings", what, quote(key))
    end
  end
  if count ~= highest then raise("invalid", op, "%s: its array part has holes", what) end
  table.sort(keys)
  for i = 1, count do visit(specs[i], nil, ("%s[%d]"):format(what, i)) end
  for _, key in ipairs(keys) do visit(specs[key], key, ("%s[%s]"):format(what, quote(key))) end
end

-- A literal spec where a list or a dict belongs would be taken apart into destinations.
local function refuse_single(specs, what, op)
  if not filespec.is_literal(specs) then return end
  for _, key in ipairs { "path", "mode", "uid", "gid", "mtime", "exclude" } do
    if specs[key] ~= nil then
      raise("invalid", op, '%s is a single spec: put it into a list, { { ... } }, or a dict,'
        .. ' { ["/to"] = { ... } }', what)
    end
  end
  for _, key in ipairs { "content", "source" } do
    if type(specs[key]) == "string" and specs[1] == nil then
      raise("invalid", op, '%s is a single spec without a destination: write { ["/dest"] = { %s = ... } };'
        .. ' ["/%s"] places a file of that name', what, key, key)
    end
  end
end

--- Reads file specs: tables (lists, dicts, both in one), paths and spec objects. Touches no file.
---@param arguments any[] in order; `arguments.n` may count them
---@param opts { op: string, cwd: string?, names: string[]? } cwd: of relative destinations; names: what
---  messages call the arguments
---@return table[] plan for `items`
function M.plan(arguments, opts)
  local names = opts.names or {}
  opts = { op = opts.op, cwd = opts.cwd or "/" }
  local plan, at = {}, {}
  local function visit(spec, key, where)
    local entry = entry_of(spec, key, where, opts)
    local other = at[entry.path]
    if other then
      raise("invalid", opts.op, "%s is given twice: by %s (%s) and by %s (%s)", quote(entry.path),
        other.where, other.label, where, entry.label)
    end
    at[entry.path] = entry
    plan[#plan + 1] = entry
  end
  for i = 1, arguments.n or #arguments do
    local argument = arguments[i]
    local what = names[i] or ("argument %d"):format(i)
    if type(argument) == "table" and getmetatable(argument) == nil then
      refuse_single(argument, what, opts.op)
      each_spec(argument, what, opts.op, visit)
    else
      visit(argument, nil, what)
    end
  end
  return plan
end

--- Reads the `files` option of a run.
---@param value any
---@param op string
---@param cwd string?
---@return table[]? plan nil when there is nothing to do
function M.option(value, op, cwd)
  if value == nil then return nil end
  if type(value) ~= "table" or getmetatable(value) ~= nil then
    raise("invalid", op, "files must be a list or a dict: write files = { %s }, got %s",
      type(value) == "string" and quote(value) or "...", quote(value))
  end
  local plan = M.plan({ value }, { op = op, cwd = cwd, names = { "files" } })
  return plan[1] and plan or nil
end

--- Reads the arguments of `apply_files`: specs, lists and dicts; in the last table `files` holds more of
--- them and `on_progress` may be a function.
---@return table[] plan
---@return function? on_progress
function M.arguments(op, ...)
  local arguments = table.pack(...)
  local last, on_progress, names = arguments[arguments.n], nil, {}
  if arguments.n > 0 and type(last) == "table" and getmetatable(last) == nil then
    local rest = {}
    for key, value in pairs(last) do rest[key] = value end
    arguments[arguments.n] = rest
    if type(rest.on_progress) == "function" then on_progress, rest.on_progress = rest.on_progress, nil end
    local more = rest.files
    if more ~= nil then
      if type(more) ~= "table" or getmetatable(more) ~= nil then
        raise("invalid", op, 'files must be a list or a dict, got %s: a file of that name is ["/files"]',
          quote(more))
      end
      rest.files = nil
      arguments.n = arguments.n + 1
      arguments[arguments.n], names[arguments.n] = more, "files"
    end
  end
  return M.plan(arguments, { op = op, names = names }), on_progress
end

-- -- local files -------------------------------------------------------------------------------

local function missing(path, op, message, number)
  if number == 40 then raise("invalid", op, "files: %s leads in a circle of symbolic links", quote(path)) end
  local kind = (number == 2 or number == 20) and "not_found" or number == 13 and "denied" or "io"
  local reason = number == 2 and "no such file or directory" or number == 13 and "permission denied"
    or number == 20 and "not a directory" or tostring(message):gsub("^.*: ", "")
  error(errors.new(kind, op, { errno = number }, "files: %s: %s", quote(path), reason), 0)
end

local function refuse_special(path, kind, op)
  local name = kind == "fifo" and "a fifo" or kind == "socket" and "a socket" or "a device"
  raise("invalid", op, "files: %s is %s, which cannot be put into an image: exclude it", quote(path), name)
end

local function file_item(entry, source, path, mode)
  return {
    path = path, kind = "file", source = source, mode = entry.mode or mode, uid = entry.uid, gid = entry.gid,
    mtime = entry.mtime,
  }
end

-- Adds the directory and, level by level, what is below it.
local function walk(entry, stat, add, op)
  local root = entry.value:gsub("(.)/+$", "%1")
  local top = entry.path == "/" and "" or entry.path
  if top ~= "" then
    add({
      path = top, kind = "dir", source = root, mode = stat.mode & 4095, uid = entry.uid, gid = entry.gid,
      mtime = entry.mtime,
    }, root)
  end
  local levels = { "" } -- directories to list, relative, with "/" behind
  local i = 1
  while levels[i] do
    local prefix = levels[i]
    levels[i] = false
    i = i + 1
    for _, found in ipairs(check.named(op, core.fs.list, root .. "/" .. prefix)) do
      local relative = prefix .. found.name
      local is_dir = found.kind == "dir"
      if not (entry.exclude and entry.exclude(relative, is_dir)) then
        local source, path = root .. "/" .. relative, top .. "/" .. relative
        if found.kind == "file" then
          add(file_item(entry, source, path, KEEP), source)
        elseif is_dir then
          add({
            path = path, kind = "dir", source = source, mode = found.mode & 4095, uid = entry.uid,
            gid = entry.gid, mtime = entry.mtime,
          }, source)
          levels[#levels + 1] = relative .. "/"
        elseif found.kind == "symlink" then
          add({
            path = path, kind = "symlink", source = source, target = found.symlink_to, uid = entry.uid,
            gid = entry.gid, mtime = entry.mtime,
          }, source)
        else
          refuse_special(source, found.kind, op)
        end
      end
    end
  end
end

local function place(entry, add, op)
  local form = entry.form
  if form == "local" or form == "tree" then
    local stat, message, number = core.fs.stat(entry.value)
    if not stat then missing(entry.value, op, message, number) end
    if stat.kind == "dir" then return walk(entry, stat, add, op) end
    if form == "tree" then
      raise("invalid", op, "files: %s is not a directory: give its path, or bough.file", quote(entry.value))
    elseif stat.kind ~= "file" then
      refuse_special(entry.value, stat.kind, op)
    elseif entry.exclude then
      raise("invalid", op, "files: %s is a file, which has nothing to exclude", quote(entry.value))
    elseif entry.path == "/" then
      refuse_root(entry, op)
    end
    form = "file"
  end
  local item = file_item(entry, nil, entry.path, FILE_MODE)
  if form == "file" then
    item.source = entry.value
  elseif form == "content" then
    item.content = entry.value
  elseif form == "digest" then
    item.digest = entry.value
  else
    item.kind, item.target, item.mode = "symlink", entry.value, nil
  end
  add(item, entry)
end

-- Where an item comes from, for messages: an entry of the plan, or a local path in a tree.
local function origin_text(from) return type(from) == "table" and from.label or quote(from) end

-- A file cannot have anything below it.
local function check_parents(items, at, origin, op)
  local good = { [""] = true }
  for _, item in ipairs(items) do
    local above = item.path:match("^(.*)/")
    local seen = {}
    while not good[above] do
      local other = at[above]
      if other and other.kind ~= "dir" then
        raise("invalid", op, "files: %s (%s) is below %s (%s), which is no directory", quote(item.path),
          origin_text(origin[item.path]), quote(above), origin_text(origin[above]))
      end
      seen[#seen + 1] = above
      above = above:match("^(.*)/")
    end
    for _, path in ipairs(seen) do good[path] = true end
  end
end

--- Makes the items of a plan: looks at local files, walks trees. Waits. Raises `not_found` and the like for
--- local files, `invalid` for a destination that two trees share and for a file below a file.
---@param plan table[] of `plan`, `option` or `arguments`
---@param op string
---@return table[] items for `engine:stage`
function M.items(plan, op)
  local items, at, origin = {}, {}, {}
  local function add(item, from)
    local path = item.path
    local other = at[path]
    if other and other.kind == "dir" and item.kind == "dir" then return end
    if other then
      raise("invalid", op, "files: %s is given twice: by %s and by %s", quote(path),
        origin_text(origin[path]), origin_text(from))
    end
    items[#items + 1], at[path], origin[path] = item, item, from
  end
  for _, entry in ipairs(plan) do place(entry, add, op) end
  check_parents(items, at, origin, op)
  return items
end

--- `plan` and `items` in one.
---@param arguments any[]
---@param opts { op: string, cwd: string?, names: string[]? }
---@return table[] items
function M.expand(arguments, opts) return M.items(M.plan(arguments, opts), opts.op) end

--- Brings a plan to an engine. Waits.
---@param handle table|userdata the engine's driver
---@param plan table[]
---@param op string
---@param on_progress function?
---@return bough.staged staged to be closed
function M.stage(handle, plan, op, on_progress)
  local items = M.items(plan, op)
  return check.named(op, function()
    return progress.follow(handle:stage(items), check.foreign(on_progress), { op = "upload" })
  end)
end

--- One line for what a plan puts in place.
---@param plan table[]
---@return string
function M.describe(plan)
  local names = {}
  for i = 1, math.min(#plan, 3) do
    local name = plan[i].path:gsub("%c", "?")
    names[i] = #name <= 60 and name or "..." .. name:sub(-57):gsub("^[\x80-\xBF]+", "")
  end
  local text = "files: " .. table.concat(names, ", ")
  if #plan > 3 then text = ("%s and %d more"):format(text, #plan - 3) end
  return text
end

return M
