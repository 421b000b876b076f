-- What some sites do with every job that is handed in; the mode is a word in a file, so that a test can change it.
function mode()
  local file = io.open("@MODE_FILE@")
  if file == nil then return "" end
  local word = file:read("*l")
  file:close()
  return word or ""
end

function slurm_job_submit(job_desc, part_list, submit_uid)
  local mode = mode()
  if mode == "banner" then
    slurm.log_user("*** Welcome to CLUSTER-X. Quota: 93%% of /home used ***")
    slurm.log_user("error: none; maintenance on Friday")
  elseif mode == "norequeue" and job_desc.requeue == 1 then
    slurm.log_user("Jobs may not be requeued on this cluster; drop --requeue")
    return slurm.ERROR
  elseif mode == "gres" and (job_desc.tres_per_node == nil or job_desc.tres_per_node == "") then
    slurm.log_user("You must specify --gres=gpu:N")
    return slurm.ERROR
  elseif mode == "mem" and job_desc.pn_min_memory > 2 ^ 62 then
    slurm.log_user("You must specify --mem")
    return slurm.ERROR
  elseif mode == "nodep" and job_desc.dependency ~= nil and job_desc.dependency ~= "" then
    slurm.log_user("dependencies are not allowed")
    return slurm.ERROR
  end
  return slurm.SUCCESS
end

function slurm_job_modify(job_desc, job_rec, part_list, modify_uid)
  return slurm.SUCCESS
end

return slurm.SUCCESS
