--- A ConTree service's images, files and trees in memory: what the stub answers with, for specs of the client.
--
--   stub:handle [[return require "spec.support.contree_world" { array = array, null = null, ... }]]
--
-- It runs in the stub's process. Settings:
--   images = { { uuid =, tag =, at =, operation = }, ... }  at: seconds since the epoch; listed newest first
--   operations = { [uuid] = { ... } }   records of operations as they are answered; `list = true` ones are listed
--   trees = { [uuid] = { ["/path"] = entry } }   entry: a string is a file, else { kind =, content =, target =, ... }
--   links = true           paths are followed along links, as far as the service does that
--   stored = { "content" } what it has; sent = "other": it stores something else; most = bytes it takes
--   imports = { "PENDING", ... }   the states of an import, one for each look, then `outcome`

local core = require "bough.core"
local fault_tar = require "spec.support.fault_tar"
local wire = require "bough.contree.wire"

local BASE = 1788000000

local rfc3339, moment = wire.rfc3339, wire.moment

-- name -> all its values
local function params_of(query)
  local params = setmetatable({}, { __index = function() return {} end })
  local function plain(text)
    return (text:gsub("+", " "):gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
  end
  for name, value in query:gmatch "([^&=]+)=?([^&]*)" do
    local values = rawget(params, plain(name)) or {}
    values[#values + 1] = plain(value)
    rawset(params, plain(name), values)
  end
  return params
end

local types = { dir = "5", symlink = "2", file = "0", fifo = "6", other = "3" }

local function tar_entry(name, entry)
  return fault_tar.entry {
    name = name, type = types[entry.kind], data = entry.content, link = entry.target, mode = entry.mode,
    uid = entry.uid, gid = entry.gid, mtime = entry.mtime,
  }
end

local modes = { file = 0x8000, dir = 0x4000, symlink = 0xA000, fifo = 0x1000, socket = 0xC000, other = 0x2000 }

-- A tree with all directories in it: path -> entry, with `names` of directories.
local function grown(tree)
  local all = { ["/"] = { kind = "dir", names = {} } }
  local function add(path, entry)
    if all[path] then
      for name, value in pairs(entry) do all[path][name] = value end
      return
    end
    all[path] = entry
    entry.names = entry.names or {}
    local above, name = path:match "^(.*)/([^/]+)$"
    if above == "" then above = "/" end
    if not all[above] then add(above, { kind = "dir" }) end
    all[above].names[name] = true
  end
  for path, entry in pairs(tree) do
    if type(entry) == "string" then entry = { kind = "file", content = entry } end
    add(path, entry)
  end
  for _, entry in pairs(all) do
    entry.uid, entry.gid, entry.mtime = entry.uid or 0, entry.gid or 0, entry.mtime or BASE
    entry.mode = entry.mode or (entry.kind == "dir" and 493 or entry.kind == "symlink" and 511 or 420)
  end
  return all
end

local function world(given)
  local array, null = given.array, given.null
  local self = {
    images = given.images or {}, operations = given.operations or {}, files = {}, trees = {}, looks = {},
    cancelled = {},
  }
  for uuid, tree in pairs(given.trees or {}) do self.trees[uuid] = grown(tree) end

  local function fail(status, text) return { status = status, json = { error = text, status = status } } end
  local function store(content)
    local sha256 = core.sha256(content)
    self.files[sha256] = self.files[sha256]
      or { uuid = ("%s-0000-4000-8000-000000000000"):format(sha256:sub(1, 8)), sha256 = sha256, size = #content }
    return self.files[sha256]
  end
  for _, content in ipairs(given.stored or {}) do store(content) end

  local function find(uuid)
    for _, image in ipairs(self.images) do
      if image.uuid == uuid then return image end
    end
  end
  local function record(image)
    return { uuid = image.uuid, tag = image.tag or null, created_at = rfc3339(image.at),
      operation_uuid = image.operation or null }
  end

  -- rows in order, as the paging of a request wants them
  local function page(rows, params)
    local limit, offset = tonumber(params.limit[1] or 100), tonumber(params.offset[1] or 0)
    if limit < 1 or limit > 1000 then return nil, fail(400, "limit must be between 1 and 1000") end
    return array { table.unpack(rows, offset + 1, math.min(#rows, offset + limit)) }
  end
  local function in_time(at, params)
    local since, last = params.since[1], params["until"][1]
    return (not since or at >= moment(since)) and (not last or at <= moment(last))
  end

  local function images(_, params)
    local rows = {}
    local prefix = params.tag[1]
    if prefix and prefix:find "[^a-z0-9_:/.-]" then return fail(400, "bad tag") end
    for _, image in ipairs(self.images) do
      local begin = params.uuid[1] or ""
      if (not params.tagged[1] or image.tag) and (not prefix or (image.tag or ""):sub(1, #prefix) == prefix)
        and image.uuid:sub(1, #begin) == begin and in_time(image.at, params) then
        rows[#rows + 1] = record(image)
      end
    end
    local part, problem = page(rows, params)
    return problem or { json = { images = part } }
  end

  local function operations(_, params)
    local rows = {}
    for uuid, operation in pairs(self.operations) do
      if (not params.kind[1] or operation.kind == params.kind[1]) and in_time(operation.at or BASE, params) then
        rows[#rows + 1] = { uuid = uuid, kind = operation.kind, status = operation.status, created_at =
          rfc3339(operation.at or BASE), image_uuid = operation.image_uuid or null, result_image_uuid =
          operation.result_image_uuid or null, error = null }
      end
    end
    table.sort(rows, function(a, b)
      if a.created_at ~= b.created_at then return a.created_at > b.created_at end
      return a.uuid < b.uuid
    end)
    local part, problem = page(rows, params)
    return problem or { json = part }
  end

  -- The path as it is, or along links; nil where it does not lead anywhere.
  local function resolve(tree, path)
    path = "/" .. path:gsub("^/+", ""):gsub("/+", "/"):gsub("(.)/$", "%1")
    if not given.links then return tree[path], path end
    local names, todo, hops = {}, {}, 0
    for name in path:gmatch "[^/]+" do todo[#todo + 1] = name end
    while todo[1] do
      local name = table.remove(todo, 1)
      if name == ".." then
        names[#names] = nil
      elseif name ~= "." then
        local at = "/" .. table.concat(names, "/")
        local entry = tree[(at == "/" and "" or at) .. "/" .. name]
        if not entry then return nil end
        if entry.kind == "symlink" then
          hops = hops + 1
          if hops > 40 then return nil end
          if entry.target:sub(1, 1) == "/" then names = {} end
          local i = 0
          for part in entry.target:gmatch "[^/]+" do
            i = i + 1
            table.insert(todo, i, part)
          end
        else
          names[#names + 1] = name
        end
      end
    end
    path = "/" .. table.concat(names, "/")
    return tree[path], path
  end

  local inspect = {}

  function inspect.list(tree, params)
    local entry, path = resolve(tree, params.path[1])
    if not entry then return fail(404, "path does not exist") end
    if entry.kind ~= "dir" then return fail(422, "path is not a directory") end
    local files = {}
    for name in pairs(entry.names) do
      local inner = tree[(path == "/" and "" or path) .. "/" .. name]
      files[#files + 1] = {
        path = name, size = inner.size or #(inner.content or ""), owner = "root", group = "root", uid = inner.uid,
        gid = inner.gid, mode = modes[inner.kind] + inner.mode, mtime = inner.mtime, nlink = inner.nlink or 1,
        is_dir = inner.kind == "dir", is_regular = inner.kind == "file", is_symlink = inner.kind == "symlink",
        is_socket = inner.kind == "socket", is_fifo = inner.kind == "fifo", symlink_to = inner.target or "",
      }
    end
    return { json = { path = params.path[1], files = array(files) }, gzip = given.gzip }
  end

  function inspect.download(tree, params)
    local entry = resolve(tree, params.path[1])
    if not entry then return fail(404, "path does not exist") end
    if entry.kind ~= "file" then return fail(422, "not a regular file") end
    return {
      body = entry.content, gzip = given.gzip, length = entry.length,
      headers = { ["Content-Type"] = "application/octet-stream" },
    }
  end

  function inspect.archive(tree, params)
    local entry, path = resolve(tree, params.path[1])
    if not entry then return fail(404, "path does not exist") end
    local prefix, names = path:gsub("/$", "") .. "/", {}
    for name in pairs(tree) do
      if name == path or name:sub(1, #prefix) == prefix then names[#names + 1] = name end
    end
    table.sort(names)
    local parts = { given.before_archive }
    for _, name in ipairs(names) do
      if name ~= "/" then
        parts[#parts + 1] = tar_entry(name:sub(2) .. (tree[name].kind == "dir" and "/" or ""), tree[name])
      end
    end
    parts[#parts + 1] = ("\0"):rep(1024)
    return { pieces = parts, headers = { ["Content-Type"] = "application/x-tar" }, cut = given.cut }
  end

  function inspect.grep(tree, params)
    local matches, names = {}, {}
    for _, start in ipairs(params.path[1] and params.path or { "/" }) do
      local entry, path = resolve(tree, start)
      if not entry then return fail(404, "path does not exist") end
      local prefix = path:gsub("/$", "") .. "/"
      for name in pairs(tree) do
        if name == path or name:sub(1, #prefix) == prefix then names[#names + 1] = name end
      end
    end
    for _, pattern in ipairs(params.pattern) do
      if pattern == "(" then return fail(400, "unclosed group") end
    end
    table.sort(names, function(a, b) return a > b end) -- the order is nobody's business
    for _, name in ipairs(names) do
      local number, offset = 0, 0
      for line, ended in (tree[name].content or ""):gmatch "([^\n]*)(\n?)" do
        if line == "" and ended == "" then break end
        number = number + 1
        local first, last = line:find((params.pattern[1]:gsub("\\(.)", "%%%1")))
        if first then
          matches[#matches + 1] = {
            path = name, line_number = number, absolute_offset = offset, line_text = line .. ended,
            line_bytes = #line + #ended, type = "match",
            submatches = array { { text = line:sub(first, last), start = first - 1, ["end"] = last } },
          }
        end
        offset = offset + #line + #ended
      end
    end
    local most = tonumber(params.max_total[1] or 1000)
    local is_cut = #matches > most
    return { json = { path = "/", patterns = array(params.pattern), truncated = is_cut, matches =
      array { table.unpack(matches, 1, math.min(most, #matches)) } } }
  end

  local function inspect_image(request, params, uuid, what)
    local image = find(uuid)
    if not image then return fail(404, "image does not exist") end
    if what == "" then return { json = record(image) } end
    local answer = inspect[what](self.trees[uuid] or grown {}, params)
    if request.method == "HEAD" then answer.body, answer.json, answer.pieces = nil, nil, nil end
    return answer
  end

  local function set_tag(request, _, uuid)
    local image = find(uuid)
    if not image then return fail(404, "image does not exist") end
    if request.method == "DELETE" then
      if given.strict_untag and not image.tag then return fail(404, "no tag") end
      image.tag = nil
      return { status = 204 }
    end
    for _, other in ipairs(self.images) do
      if other.tag == request.json.tag then other.tag = nil end
    end
    image.tag = request.json.tag
    return { json = record(image) }
  end

  local function import(request)
    local uuid = "1f0c2f0e-0000-4a57-9d0a-000000000001"
    self.imported = request.json
    self.operations[uuid] = { kind = "image_import", status = "PENDING", uuid = uuid }
    return { status = 201, json = { uuid = uuid }, headers = { Location = "/v1/operations/" .. uuid },
      delay = given.import_delay }
  end

  local function operation(request, _, uuid)
    local found = self.operations[uuid]
    if not found then return fail(404, "no such operation") end
    if request.method == "DELETE" then
      self.cancelled[uuid], found.status = true, "CANCELLED"
      return { status = 202 }
    end
    local answer = { uuid = uuid, created_at = rfc3339(found.at or BASE) }
    for name, value in pairs(found) do answer[name] = value end
    answer.at = nil
    if self.imported and found.status == "PENDING" then
      self.looks[uuid] = (self.looks[uuid] or 0) + 1
      local status = (given.imports or {})[self.looks[uuid]]
      answer.status = status or "SUCCESS"
      if not status then
        for name, value in pairs(given.outcome or {}) do
          answer[name], found[name] = value, value
        end
        answer.metadata = { registry = { url = self.imported.registry.url } }
        if answer.result_image_uuid then find(answer.result_image_uuid).tag = self.imported.tag end
      end
    end
    return { json = answer }
  end

  local function files(request)
    if given.most and #request.body > given.most then return fail(413, "payload too large") end
    local stored = store(given.sent or request.body)
    return { status = 201, json = { uuid = stored.uuid, sha256 = stored.sha256, size = stored.size } }
  end

  local function file(_, _, sha256)
    local stored = self.files[sha256]
    if not stored then return fail(404, "no such file") end
    return { json = { uuid = stored.uuid, sha256 = sha256, size = stored.size, created_at = rfc3339(BASE),
      updated_at = rfc3339(BASE) } }
  end

  local function by_tag(_, params)
    for _, image in ipairs(self.images) do
      if image.tag and image.tag == params.tag[1] then
        return { status = 302, headers = { Location = image.uuid .. "/" } }
      end
    end
    return fail(404, "no such tag")
  end

  local routes = {
    { "^/images$", images }, { "^/images/import$", import }, { "^/images/([^/]+)/tag$", set_tag },
    { "^/operations$", operations }, { "^/operations/([^/]+)$", operation }, { "^/files$", files },
    { "^/files/([^/]+)$", file }, { "^/inspect/$", by_tag }, { "^/inspect/([^/]+)/(%a*)$", inspect_image },
  }
  return function(request)
    local params = params_of(request.query)
    for _, route in ipairs(routes) do
      local first, second = request.path:match(route[1])
      if first then return route[2](request, params, first, second) end
    end
    return fail(404, "no such route")
  end
end

return world
